"""Batch normalisation over processes; tests/test_parallel.py has more than one of them."""

import pytest
import torch
from torch import nn

from gebm.networks.batch_norm import WholeBatchNorm, over_processes


@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 5, 5)])
@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}])
def test_it_is_that_of_torch_for_a_whole_batch(shape, options):
    torch.manual_seed(0)
    kind = nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d
    theirs, ours = kind(3, **options).double(), WholeBatchNorm(3, **options).double()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    ours.load_state_dict(theirs.state_dict())
    for training in (True, True, False):
        theirs.train(training), ours.train(training)
        x = torch.randn(shape, dtype=torch.float64) * 3 + 1
        g = torch.randn(shape, dtype=torch.float64)
        found = []
        for layer in (theirs, ours):
            layer.zero_grad()
            leaf = x.clone().requires_grad_()
            y = layer(leaf)
            y.backward(g)
            found.append([y.detach(), leaf.grad, *(p.grad for p in layer.parameters()), *layer.state_dict().values()])
        assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(*found, strict=True))


def test_half_precision_in_half_precision_out_and_statistics_in_full():
    layer = WholeBatchNorm(2)
    x = 100 + torch.randn(64, 2, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert layer(x).dtype == torch.bfloat16 and layer.running_mean.dtype == torch.float32
    assert torch.allclose(layer.running_mean, 0.1 * x.float().mean(0), rtol=1e-6)


def test_with_one_process_a_network_stays_as_it_is():
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    assert over_processes(network) is network and type(network[1]) is nn.BatchNorm1d
