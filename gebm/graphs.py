"""CUDA graphs: a function of one tensor, replayed with one launch. Untested on CUDA."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from gebm.errors import InputError

__all__ = ["Graphed"]

WARM_UP = 3  # calls, in which libraries choose their kernels and take their workspaces

R = TypeVar("R")

log = logging.getLogger("gebm")


class Graphed(Generic[R]):
    """A function of one tensor on a GPU, captured at the fourth call with a shape and replayed from then on.

    The function must not synchronise with the host, and what it reads or changes besides its argument has to stay where
    it is in memory. A function that cannot be captured is called as it is from then on, and the log says so.

    Arguments:
        function: tensor -> a pair or a dict of tensors.
        generators: random generators that it draws from besides torch's own.

    Raises:
        InputError: a function with generators cannot be captured: what was tried has made these unusable.
    """

    def __init__(self, function: Callable[[Tensor], R], generators: Sequence[torch.Generator] = ()):
        self.function = function
        self.generators = generators
        self.calls: dict[torch.Size, int] = {}
        self.graphs: dict[torch.Size, tuple[Callable[[], None], R, Tensor]] = {}
        self.failed = False
        self.pool: Any = None

    def __call__(self, x: Tensor) -> R:
        self.calls[x.shape] = calls = self.calls.get(x.shape, 0) + 1
        if self.failed or calls <= WARM_UP:
            return self.function(x)
        if x.shape not in self.graphs:
            try:
                self.graphs[x.shape] = self._capture(x.clone())
            except RuntimeError as error:
                why = str(error).splitlines()[0]
                if self.generators:
                    raise InputError(f"--fast graphs: a step cannot be captured ({why}); give --fast auto") from error
                self.failed = True
                log.info("no CUDA graph (%s): going on without", why)
                return self.function(x)
        replay, results, given = self.graphs[x.shape]
        given.copy_(x)
        replay()
        copied: R = _copied(results)
        return copied

    def _capture(self, given: Tensor) -> tuple[Callable[[], None], R, Tensor]:
        """The function's work as a graph, not yet done: what does it, the results it overwrites, and its argument."""
        graph = torch.cuda.CUDAGraph()
        for generator in self.generators:
            graph.register_generator_state(generator)
        stream = torch.cuda.current_stream(given.device)
        try:
            with torch.cuda.graph(graph, pool=self.pool):
                results = self.function(given)
        finally:
            torch.cuda.set_stream(stream)  # a capture that fails leaves its own
        self.pool = graph.pool()  # one for all shapes: they are replayed in turn, and results are copied
        return graph.replay, results, given


def _copied(results: Any) -> Any:
    if isinstance(results, dict):
        return {name: result.clone() for name, result in results.items()}
    return tuple(result.clone() for result in results)
