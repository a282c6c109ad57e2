"""CUDA graphs: a function of one tensor, replayed with one launch. Untested on CUDA."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

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
    """

    def __init__(self, function: Callable[[Tensor], R], generators: Sequence[torch.Generator] = ()):
        self.function = function
        self.generators = generators
        self.calls: dict[torch.Size, int] = {}
        self.graphs: dict[torch.Size, tuple[Callable[[], None], R, Tensor]] = {}
        self.failed = False

    def __call__(self, x: Tensor) -> R:
        self.calls[x.shape] = calls = self.calls.get(x.shape, 0) + 1
        if self.failed or calls <= WARM_UP:
            return self.function(x)
        if x.shape not in self.graphs:
            try:
                self.graphs[x.shape] = self._capture(x.clone())
            except RuntimeError as error:
                self.failed = True
                log.info("no CUDA graph (%s): going on without", str(error).splitlines()[0])
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
        with torch.cuda.graph(graph):
            results = self.function(given)
        return graph.replay, results, given


def _copied(results: Any) -> Any:
    if isinstance(results, dict):
        return {name: result.clone() for name, result in results.items()}
    return tuple(result.clone() for result in results)
