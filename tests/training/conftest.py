"""A tiny pair on random images, and bit-for-bit comparison of all that a run keeps between its steps."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from gebm.data import Batches
from gebm.model import GEBM, Architecture
from gebm.objectives import OBJECTIVES
from gebm.training.negatives import Fresh
from gebm.training.trainer import Trainer

SHAPE = (1, 8, 8)


@pytest.fixture
def make_trainer():
    def make(
        seed=0, *, sgd=None, penalty="gradient", dtype=torch.float32, lr=1e-2, energy="dcgan", dropout=0.0,
        criterion="kale", negatives=Fresh, **options
    ) -> Trainer:  # fmt: skip
        torch.manual_seed(seed)
        model = GEBM.build(Architecture("dcgan", energy, SHAPE, latent_dim=3, width=0.05)).to(dtype)
        if dropout:  # draws from torch's own random state
            model.energy.features = nn.Sequential(model.energy.features, nn.Dropout(dropout))
        images = torch.randint(256, (40, *SHAPE), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
        objective = OBJECTIVES[criterion](model.energy, model.log_partition, penalty, 0.1)

        def optimizer(parameters):
            if sgd is not None:
                return torch.optim.SGD(parameters, lr, momentum=sgd)
            return torch.optim.Adam(parameters, lr, (0.5, 0.9))

        batches = Batches(images, 8, "cpu", torch.Generator().manual_seed(seed))
        generator = torch.Generator().manual_seed(seed)
        energy_optimizer, base_optimizer = optimizer(objective.parameters()), optimizer(model.base.parameters())
        return Trainer(
            model, batches, objective, energy_optimizer, base_optimizer, negatives=negatives(), generator=generator,
            **options,
        )  # fmt: skip

    return make


def flat(value, key="") -> dict:
    """A nested state as one dict from paths to tensors and numbers."""
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {path: leaf for k, v in items for path, leaf in flat(v, f"{key}/{k}").items()}
    return {key: value.detach().clone() if isinstance(value, torch.Tensor) else value}


@pytest.fixture
def state():
    """of(trainer): weights, buffers, c, optimisers, counters, random states; assert_same(a, b): of two such states."""

    def of(trainer: Trainer) -> dict:
        leaves = flat({"model": trainer.model.state_dict(), "rest": trainer.state_dict()})
        return {k: v for k, v in leaves.items() if not k.endswith("/lr")}  # set anew before a step

    def assert_same(a: dict, b: dict) -> None:
        assert a.keys() == b.keys()
        different = [k for k in a if not (torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k])]
        assert not different, different[:5]

    return SimpleNamespace(of=of, assert_same=assert_same)


@pytest.fixture
def run(tmp_path) -> Path:
    path = tmp_path / "run"
    path.mkdir()
    return path
