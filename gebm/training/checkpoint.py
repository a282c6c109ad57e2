"""Checkpoints: folders that are whole or absent, of safetensors and JSON only."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
from torch import Tensor

from gebm.bounded import read_json, reason
from gebm.checkpoints import checkpoints, order
from gebm.errors import InputError
from gebm.files import atomic_folder, naming, remove_folder, sweep
from gebm.manifest import damage, read_manifest, write_manifest
from gebm.training.trainer import Counters, Trainer
from gebm.weights import read_tensors

__all__ = ["Measure", "best_before", "best_checkpoint", "load_checkpoint", "measure_of"]
__all__ += ["drop_older", "name_of", "save_checkpoint"]


class Measure(NamedTuple):
    """A value by which the best checkpoint of a stage is told, and whether the lowest is the best."""

    name: str
    value: float
    lowest: bool

    def better(self, other: "Measure") -> bool:
        """Whether this is better than another value of the same name."""
        return self.value < other.value if self.lowest else self.value > other.value

    def far_worse(self, other: "Measure") -> bool:
        """Whether this is worse than another value of the same name by more than a fifth of that."""
        margin = abs(other.value) / 5
        return self.value > other.value + margin if self.lowest else self.value < other.value - margin


def name_of(counters: Counters) -> str:
    """Folder name of the checkpoint at these counters: the stage and its own step."""
    return f"{counters.stage}-{counters.stage_step:08d}"


def measure_of(path: Path) -> Measure | None:
    """What was measured of a checkpoint when it was written as the best one so far, if it was."""
    try:
        return Measure(**found) if (found := read_manifest(path).get("measure")) else None
    except (OSError, ValueError, TypeError):
        return None


def best_checkpoint(run: str | Path, stage: str) -> Path | None:
    """The best of a stage's checkpoints by what was measured of them last; None if nothing was."""
    found = [(path, m) for path in checkpoints(run) if order(path)[0] == stage and (m := measure_of(path))]
    best = None
    for path, measure in found:
        if measure.name == found[-1][1].name and (best is None or measure.better(best[1])):
            best = path, measure
    return best[0] if best else None


def best_before(run: str | Path, counters: Counters, name: str) -> tuple[Path, Measure] | None:
    """The best of a stage's checkpoints from before these counters by a value of that name; None if there is none."""
    here = order(Path(name_of(counters)))
    earlier = [path for path in checkpoints(run) if order(path)[0] == here[0] and order(path) < here]
    best = None
    for path in earlier:
        measure = measure_of(path)
        if measure is not None and measure.name == name and (best is None or measure.better(best[1])):
            best = path, measure
    return best


def save_checkpoint(
    run: str | Path, trainer: Trainer, config: str, keep: int = 2, measure: Measure | None = None
) -> Path:
    """Write `checkpoints/<stage>-<step>/` of a run; of that stage's, the newest `keep` and the best one stay.

    The folder holds `base.safetensors` (the base that is sampled: the moving average if there is one) and
    `energy.safetensors` (with c), which `GEBM.load` reads; `training.safetensors` and `training.json` with optimisers,
    counters and random states; the resolved configuration `config.yaml`; and `manifest.json` with the sha256 of each.

    Arguments:
        run: the run's folder.
        trainer: whose state it is.
        config: the text of `config.yaml`.
        keep: newest checkpoints of a stage that stay, at least 1.
        measure: by which this is the best of its stage so far.

    Raises:
        OSError: it cannot be written; all that was there before still is.
    """
    path = Path(run) / "checkpoints" / name_of(trainer.counters)
    tensors: dict[str, Tensor] = {}
    skeleton = _pack(trainer.state_dict(), "", tensors)
    with atomic_folder(path) as folder:
        trainer.sampled_model.save(folder)
        with naming(path / "training.safetensors"):
            safetensors.torch.save_file(tensors, folder / "training.safetensors")
        (folder / "training.json").write_text(json.dumps(skeleton))
        (folder / "config.yaml").write_text(config, encoding="utf-8")
        write_manifest(folder, measure=measure and measure._asdict())
    sweep(path.parent)
    drop_older(path, keep)
    return path


def drop_older(path: Path, keep: int) -> None:
    """Remove what a whole checkpoint makes superfluous, which a kill right after its writing has left."""
    found, stage = checkpoints(path.parent.parent), order(path)[0]
    ahead = [p for p in found if order(p) > order(path)]  # damaged, or of a course that the run has left
    same = [p for p in found if order(p)[0] == stage and p not in ahead]
    best = best_checkpoint(path.parent.parent, stage)
    for old in [*ahead, *(p for p in same[:-keep] if p != best)]:
        remove_folder(old)


def load_checkpoint(path: str | Path, trainer: Trainer) -> None:
    """Restore a trainer, its model included, from a checkpoint folder.

    Raises:
        InputError: a file is missing, damaged or of another architecture or optimiser.
    """
    path = Path(path)
    if found := damage(path):
        raise InputError(f"{found}; resume from another checkpoint")
    trainer.model.load_base(path)
    trainer.model.load_energy(path)
    try:
        skeleton = read_json(path / "training.json")
        tensors = read_tensors(path / "training.safetensors")
        trainer.load_state_dict(_unpack(skeleton, tensors))
    except InputError:
        raise
    except Exception as error:  # a damaged state may raise anything
        why = reason(error)
        raise InputError(f"{path}: cannot resume from this checkpoint ({why}); resume from an older one") from None


def _pack(value: Any, key: str, tensors: dict[str, Tensor]) -> Any:
    """`value` with its tensors moved into `tensors`, each replaced by a {"tensor": key}; the rest is plain JSON.

    Dicts become lists of pairs, because JSON would turn their integer keys into texts.
    """
    if isinstance(value, Tensor):
        tensors[key] = value.detach().cpu().contiguous().clone()
        return {"tensor": key}
    if isinstance(value, dict):
        return {"dict": [[k, _pack(v, f"{key}/{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        return [_pack(v, f"{key}/{i}", tensors) for i, v in enumerate(value)]
    return value


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {k: _unpack(v, tensors) for k, v in value["dict"]}
    if isinstance(value, list):
        return [_unpack(v, tensors) for v in value]
    return value
