"""The critic of a GAN as an energy."""

from collections.abc import Callable

from torch import Tensor, nn

from gebm.errors import InputError

__all__ = ["Critic", "critic"]


class Critic(nn.Module):
    r"""The energy :math:`E(x) = -D(x)` of a critic that is high where it takes samples for data.

    Of a discriminator that was trained to the end, D is the logit of "data", and exp(-E) = exp(D) then is the density
    of the data relative to the base's: the pair needs no training (discriminator-driven latent sampling, Che et al.,
    *Your GAN is secretly an energy-based model*, NeurIPS 2020, arXiv 2003.06060).

    Arguments:
        critic: D, samples (N, ...) -> (N,), (N, 1) or (N, 1, 1, 1).

    Raises (when called):
        InputError: it gives another number of values than samples.

    Example:

        >>> import torch
        >>> energy = critic(nn.Linear(2, 1))
        >>> energy(torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    def __init__(self, critic: Callable[[Tensor], Tensor]):
        super().__init__()
        self.critic = critic

    def forward(self, x: Tensor) -> Tensor:
        values = self.critic(x)
        if not isinstance(values, Tensor) or values.numel() != len(x):
            what = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise InputError(f"critic: gives {what} for {len(x)} samples, one number each is needed")
        return -values.reshape(len(x))


def critic(network: Callable[[Tensor], Tensor]) -> Critic:
    """The energy -D of a critic D, to be given to `gebm.GEBM`: see `Critic`.

    Example:

        >>> import torch
        >>> critic(lambda x: x.sum(1, keepdim=True))(torch.ones(2, 3))
        tensor([-3., -3.])
    """
    return Critic(network)
