"""Energy and base steps of a small pair, in as many processes as are launched: what they came to, as JSON a process."""

import json
import sys

import torch

from gebm import parallel
from gebm.data import Batches
from gebm.model import GEBM, Architecture
from gebm.objectives import OBJECTIVES
from gebm.training.trainer import Trainer

STEPS = 20


def smoothed(module: torch.nn.Module) -> None:
    """Every rectifier within becomes a tanh, in place.

    A rectifier whose input lies within rounding of zero may be on in one run and off in another, and nothing bounds
    what follows: on one kind of CPU a float32 step of resnet-sn met such a unit, and its losses, 2e-7 apart until then,
    were 6e-5 apart five steps later.
    """
    for name, child in module.named_children():
        if isinstance(child, torch.nn.ReLU | torch.nn.LeakyReLU):
            setattr(module, name, torch.nn.Tanh())
        smoothed(child)


def trainer_of(name: str, criterion: str, noise_factor: int, optimizer: str, dtype: torch.dtype) -> Trainer:
    torch.manual_seed(0)
    shape = (1, 16, 16)
    model = GEBM.build(Architecture(base=name, energy=name, shape=shape, latent_dim=8, width=0.1), dtype=dtype)
    if dtype == torch.float32:
        smoothed(model)
    images = torch.randint(0, 256, (50, *shape), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)

    def descent(*parameters: torch.nn.Parameter) -> torch.optim.Optimizer:
        if optimizer == "SGD":
            return torch.optim.SGD(parameters, 1e-2, momentum=0.5)
        return torch.optim.Adam(parameters, 1e-3, betas=(0.5, 0.9))

    return Trainer(
        model,
        Batches(images, 8, generator=torch.Generator().manual_seed(2)),
        OBJECTIVES[criterion](model.energy, model.log_partition),
        descent(*model.energy.parameters(), model.log_partition),
        descent(*model.base.parameters()),
        noise_factor=noise_factor,
        ema=0.9,
        grad_clip=1.0,
        generator=torch.Generator().manual_seed(3),
    )


def main(out: str, name: str, criterion: str, noise_factor: str, optimizer: str, dtype: str) -> None:
    parallel.join(cpu=True)
    trainer = trainer_of(name, criterion, int(noise_factor), optimizer, getattr(torch, dtype))
    trainer.initialize_log_partition(2)
    steps = []
    for _ in range(STEPS):
        found = [trainer.energy_step(), trainer.energy_step(), trainer.base_step()]
        steps.append({f"{i}.{key}": float(value) for i, stats in enumerate(found) for key, value in stats.items()})
    trainer.freeze_energy()
    loss = trainer.base_step()["base_loss"]  # against a frozen energy: c follows the whole batch
    steps.append({"base_loss": float(loss), "c": float(trainer.model.log_partition.detach())})
    average = trainer.average.module.state_dict()
    state = {**trainer.model.state_dict(), **{f"average.{key}": value for key, value in average.items()}}
    result = {"steps": steps, "state": {key: value.flatten().tolist() for key, value in state.items()}}
    with open(f"{out}.{parallel.rank()}", "w") as file:
        json.dump(result, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
