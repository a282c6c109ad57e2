"""Batch normalisation by the statistics of the whole batch, of which each process has a share."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gebm.parallel import gathered, processes

__all__ = ["WholeBatchNorm", "over_processes"]


class WholeBatchNorm(_BatchNorm):
    r"""Batch normalisation over equal shares of a batch; its parameters and buffers are those of `nn.BatchNorm2d`.

    With mean and variance :math:`m_r, v_r` of the share of process r, those of the batch are the mean of the m_r and
    the mean of :math:`v_r + (m_r - m)^2`. One exchange of 2C numbers forward and one back. `nn.SyncBatchNorm` does
    the same, on GPUs alone.

    Shapes: (N, C, ...) -> (N, C, ...), N the rows of this process.
    """

    def _check_input_dim(self, x: Tensor) -> None:
        """Any number of dimensions."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and self.running_mean is not None:
            return super().forward(x)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        others = [d for d in range(x.ndim) if d != 1]
        of_share = torch.stack([wide.mean(others), wide.var(others, correction=0)])
        means, variances = gathered(of_share[None]).unbind(1)
        mean = means.mean(0)
        variance = (variances + (means - mean).square()).mean(0)
        if self.training and self.running_mean is not None:
            self._remember(mean.detach(), variance.detach(), len(means) * x.numel() // x.shape[1])
        per_channel = [-1, *[1] * (x.ndim - 2)]
        normal = (wide - mean.view(per_channel)) * torch.rsqrt(variance + self.eps).view(per_channel)
        if self.affine:
            normal = normal * self.weight.view(per_channel) + self.bias.view(per_channel)
        return normal.to(x.dtype)

    def _remember(self, mean: Tensor, variance: Tensor, n: int) -> None:
        """Move the running statistics towards those of a batch of n numbers a channel."""
        assert self.num_batches_tracked is not None and self.running_mean is not None and self.running_var is not None
        self.num_batches_tracked.add_(1)
        momentum = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), momentum)
        self.running_var.lerp_((variance * n / (n - 1)).to(self.running_var), momentum)


def over_processes(network: nn.Module) -> nn.Module:
    """The network with batch normalisation over all processes, in its place; with one process as it is."""
    if processes() == 1:
        return network
    if next(network.parameters()).device.type == "cuda":  # untested on CUDA
        synchronised: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        return synchronised
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            layer.__class__ = WholeBatchNorm  # type: ignore[assignment]  # a batch norm that it may become
    return network
