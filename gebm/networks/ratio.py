"""An energy from two densities, with a partition that is known."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gebm.networks.common import HasDensity
from gebm.networks.flows import Flow

__all__ = ["DensityRatio"]


class DensityRatio(nn.Module):
    r"""Energy of a flow p on top of a base of density g.

    .. math:: E(x) = \log g(x) - \log p(x) + b

    exp(-E) g = exp(-b) p: the model's density is p exactly, whatever g is, and its log-partition is -b (paper.md
    section 4, where b is a function of the weights).

    The base is used, not owned: it is no submodule, and g depends on x but not on the base's parameters. They drop out
    of E_G[exp(-E)] = exp(-b), so their gradient would be noise. An energy is a function of one row, so batch
    normalisation goes by running statistics on both sides; those of p stay what they are (0 and 1 at first: right for
    whitened data), and p has no dropout.

    Arguments:
        flow: p, with parameters of its own.
        base: g, a network with `log_prob`.
        offset: b.

    Shapes: rows (N, d) -> energies (N,).

    Example:

        >>> from gebm.networks import FLOWS
        >>> base, flow = (FLOWS["nvp"]((2,), latent_dim=2).eval() for _ in range(2))
        >>> energy, x = DensityRatio(flow, base), torch.randn(5, 2)
        >>> torch.allclose(base.log_prob(x) - energy(x), flow.log_prob(x), atol=1e-5)
        True
    """

    offset: Tensor

    def __init__(self, flow: Flow, base: nn.Module, offset: float = 0.0):
        super().__init__()
        self.flow = flow.eval()
        self.register_buffer("offset", torch.tensor(float(offset)))
        self._base = (base,)  # in a tuple, so that it is not registered

    @property
    def base(self) -> nn.Module:
        """The network whose density is g."""
        return self._base[0]

    @property
    def known_log_partition(self) -> Tensor:
        """log E_G[exp(-E)] = -b, a scalar."""
        return -self.offset

    def match_base(self) -> bool:
        """Make p the base's density, and E = b, if the two are flows of one architecture; whether they are."""
        ours, theirs = self.flow.state_dict(), self.base.state_dict()
        same = type(self.flow) is type(self.base) and _shapes(ours) == _shapes(theirs)
        if same:
            self.flow.load_state_dict(theirs)
        return same

    def on(self, base: nn.Module) -> "DensityRatio":
        """The same p, weights shared, on another base."""
        other = copy.copy(self)
        other._base = (base,)
        return other

    def log_density(self, x: Tensor) -> Tensor:
        """log p of rows (N, d), (N,): the model's log-density, which needs no g."""
        return self.flow.log_prob(x)

    def forward(self, x: Tensor) -> Tensor:
        with _held(self.base):
            assert isinstance(self.base, HasDensity)
            log_base = self.base.log_prob(x)
        return log_base - self.log_density(x) + self.offset

    def train(self, mode: bool = True) -> "DensityRatio":
        super().train(mode)
        self.flow.eval()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "DensityRatio":
        # To another device or precision the two go together; if the base is there already, this changes nothing.
        self.base._apply(fn, recurse)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


def _shapes(state: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}


@contextmanager
def _held(network: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients to the parameters within; gradients to the inputs as ever."""
    modes = [module for module in network.modules() if module.training]
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    try:
        for module in modes:
            module.training = False
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for module in modes:
            module.training = True
        for parameter in parameters:
            parameter.requires_grad_(True)
