"""The baseline in a process of its own, which what a command of gebm sets for its process does not reach."""

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import torch
from cases import BASELINE, Forms
from timing import operations, peak_bytes, synchronise

__all__ = ["Ask", "baselines"]

Cases = Callable[[Any], Iterable[tuple[str, Forms]]]
Ask = Callable[[str, str], Any]  # case, one of DONE -> what came of it


def _made(step: Callable[[], object]) -> None:
    step()
    synchronise()


DONE = {"step": _made, "operations": operations, "peak_bytes": peak_bytes}


@contextmanager
def baselines(cases: Cases, size: Any) -> Iterator[Ask]:
    """Within, a function that has the baseline's step of a case done elsewhere, and returns when that is so.

    Cases are asked for in their order.
    """
    here, there = multiprocessing.Pipe()
    arguments = there, cases, size, torch.get_num_threads()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=arguments, daemon=True)
    process.start()
    there.close()  # so that its end is noticed here

    def ask(case: str, what: str) -> Any:
        here.send((case, what))
        return here.recv()

    try:
        yield ask
    finally:
        here.close()
        process.join()


def _serve(pipe: Connection, cases: Cases, size: Any, threads: int) -> None:
    torch.set_num_threads(threads)
    made, case, forms = iter(cases(size)), "", {}
    while True:
        try:
            wanted, what = pipe.recv()
        except EOFError:
            return
        while case != wanted:
            case, forms = next(made)
        pipe.send(DONE[what](forms[BASELINE]))
