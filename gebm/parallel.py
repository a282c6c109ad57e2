"""More than one process: who this one is, its share of the work, and what they exchange.

Every process holds the whole model and draws the same numbers: random states, counters and losses are those of the
whole batch, on all of them alike. Of what is drawn each takes its share, and energies are gathered before anything
is computed from them. With one process every function here is the identity, and nothing is exchanged or imported.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function

from gebm.errors import InputError, LostProcess

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = [
    "agreed", "everyones", "from_first", "gathered", "in_order", "in_waves", "is_first", "is_lost", "join", "launched",
    "leave", "local_rank", "mine", "on_this_machine", "over_gpus", "processes", "rank", "share", "together", "wait",
    "wrapped",
]  # fmt: skip

T = TypeVar("T")

_accelerator: "Accelerator | None" = None
_control: "dist.ProcessGroup | None" = None  # on the CPU, so that what goes through it does not wait for a GPU


def launched() -> int:
    """The processes that a launcher (torchrun, accelerate) started, as its environment says; 1: there is none."""
    return int(os.environ.get("WORLD_SIZE", 1)) if {"RANK", "LOCAL_RANK"} <= os.environ.keys() else 1


def on_this_machine() -> int:
    """The processes of the launcher that share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if launched() > 1 else 1


def local_rank() -> int:
    """This process's number on its machine, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0)) if launched() > 1 else 0


def join(cpu: bool) -> None:
    """Meet the other processes of the launcher, over gloo on the CPU and NCCL on GPUs; nothing without a launcher.

    Raises:
        InputError: accelerate was told to use an engine other than plain data parallelism.
    """
    global _accelerator, _control
    if launched() == 1 or _accelerator is not None:
        return
    from accelerate import Accelerator, DistributedType

    _accelerator = Accelerator(cpu=cpu, mixed_precision="no", device_placement=False)
    if _accelerator.distributed_type not in (DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise InputError(f"{_accelerator.distributed_type}: training is data-parallel alone; launch it as multi-GPU")
    _control = dist.new_group(backend="gloo")


def leave() -> bool:
    """Part, when all are here; returns whether this is the first process, which may go on by itself."""
    global _accelerator, _control
    first = is_first()
    if processes() > 1:
        wait()
        dist.destroy_process_group()
        _accelerator = _control = None
    return first


def processes() -> int:
    """How many processes have joined."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def over_gpus() -> bool:
    """Whether tensors are exchanged between GPUs."""
    return processes() > 1 and dist.get_backend() != "gloo"


def rank() -> int:
    """The number of this one, from 0."""
    return dist.get_rank() if processes() > 1 else 0


def is_first() -> bool:
    """Whether this is the process that writes."""
    return rank() == 0


def share(x: Tensor) -> Tensor:
    """This process's rows of a tensor (N, ...) that all have drawn alike: rank, rank + W, ... of W processes.

    Rows in step keep pairs together, the first rows of two tensors of different length too.
    """
    return x[rank() :: processes()].contiguous() if processes() > 1 else x


def gathered(x: Tensor) -> Tensor:
    """All rows (N, ...) of which each process has its `share`, in their order, with the graph to them.

    The gradient is summed over the processes, so that where all compute the same loss each has W times its part; the
    mean over processes of the gradients of weights is then that of the whole batch.
    """
    if processes() == 1:
        return x
    whole: Tensor = _Gather.apply(x)  # type: ignore[no-untyped-call]
    return whole


def mine(items: Iterable[T]) -> Iterator[T]:
    """This process's items of a sequence of independent pieces of work: rank, rank + W, ..."""
    for i, item in enumerate(items):
        if i % processes() == rank():
            yield item


def in_order(shares: list[list[T]]) -> list[T]:
    """The results of all items, in their order, from each process's list of its own (`mine`)."""
    return [shares[i % len(shares)][i // len(shares)] for i in range(sum(map(len, shares)))]


def everyones(work: Callable[[], T]) -> list[T]:
    """What `work` returns on each process, on all of them; where it fails on one, that error is raised on all."""
    if processes() == 1:
        return [work()]
    results: list[tuple[T | None, Exception | None]] = [(None, None)] * processes()
    dist.all_gather_object(results, _outcome(work), group=_control)
    for _, error in results:
        if error is not None:
            raise error
    return [result for result, _ in results]  # type: ignore[misc]


def from_first(work: Callable[[], T]) -> T:
    """What `work` returns, or raises, on the first process, which alone calls it."""
    if processes() == 1:
        return work()
    outcome = [_outcome(work) if is_first() else (None, None)]
    dist.broadcast_object_list(outcome, 0, group=_control)
    result, error = outcome[0]
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


def agreed(number: int) -> int:
    """The largest of the numbers that the processes give; does not wait for a GPU."""
    if processes() == 1:
        return number
    largest = torch.tensor(number)
    dist.all_reduce(largest, dist.ReduceOp.MAX, group=_control)
    return int(largest)


def wait() -> None:
    """Go on when all processes are here."""
    if processes() > 1:
        dist.barrier(group=_control)


@contextmanager
def in_waves() -> Iterator[None]:
    """Within, the first process works alone, then one on each other machine, then the rest: for caches on disks."""
    wave = 0 if is_first() else 1 if local_rank() == 0 else 2
    for _ in range(wave):
        wait()
    yield
    for _ in range(wave, 2):
        wait()


def is_lost(error: Exception) -> bool:
    """Whether an error is that of an exchange whose other process has ended."""
    text = str(error)
    return launched() > 1 and (isinstance(error, dist.DistError) or "gloo" in text or "Connection" in text)


@contextmanager
def together(advice: str) -> Iterator[None]:
    """Within, the end of another process is one `LostProcess` with that advice.

    Raises:
        LostProcess: another process has ended.
        InputError: a network that `wrapped` cannot train.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if "finished reduction in the prior iteration" in text:
            raise InputError(
                "a network has parameters that its loss does not use, and several processes cannot train it: freeze "
                "them with requires_grad_(False), or take one process"
            ) from None
        if not is_lost(error):
            raise
        raise LostProcess(f"another process of this run has ended, and so does this one: {advice}") from None


def wrapped(module: nn.Module) -> nn.Module:
    """A module whose backward pass leaves the mean over processes of its parameters' gradients."""
    return module if _accelerator is None else _accelerator.prepare_model(module)


class _Gather(Function):
    """Rows of all processes, in the order of `share`; its adjoint sums over the processes and takes the share.

    `torch.distributed` has this under names that change from version to version.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(processes())]
        dist.all_gather(parts, x.contiguous())
        return torch.stack(parts, 1).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        total = g.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return share(total)


def _outcome(work: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """The result or the error; errors of the user's input or of the numbers are told to the others, others end all."""
    try:
        return work(), None
    except (InputError, FloatingPointError, OSError) as error:
        return None, error
