"""Checkpoints: folders that are whole or absent, of safetensors and JSON only."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from gebm.bounded import read_json, reason
from gebm.errors import InputError
from gebm.files import atomic_folder
from gebm.training.trainer import Counters, Trainer
from gebm.weights import read_tensors

__all__ = ["checkpoints", "load_checkpoint", "save_checkpoint"]

NAME = re.compile(r"(base|joint|refine)-(\d+)")  # the alphabet puts the stages in their order


def checkpoints(run: str | Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first."""
    found = [(match, p) for p in Path(run).glob("checkpoints/*") if (match := NAME.fullmatch(p.name))]
    found.sort(key=lambda pair: (pair[0][1], int(pair[0][2])))
    return [p for _, p in found if (p / "training.json").is_file()]


def name_of(counters: Counters) -> str:
    """Folder name of the checkpoint at these counters: the stage and its own step."""
    return f"{counters.stage}-{counters.stage_step:08d}"


def save_checkpoint(run: str | Path, trainer: Trainer, config: str, keep: int = 2) -> Path:
    """Write `checkpoints/<stage>-<step>/` of a run and drop all but the newest `keep` of that stage.

    The folder holds `base.safetensors` (the base that is sampled: the moving average if there is one) and
    `energy.safetensors` (with c), which `GEBM.load` reads; `training.safetensors` and `training.json` with optimisers,
    counters and random states; and the resolved configuration `config.yaml`.
    """
    path = Path(run) / "checkpoints" / name_of(trainer.counters)
    tensors: dict[str, Tensor] = {}
    skeleton = _pack(trainer.state_dict(), "", tensors)
    with atomic_folder(path) as folder:
        trainer.sampled_model.save(folder)
        safetensors.torch.save_file(tensors, folder / "training.safetensors")
        (folder / "training.json").write_text(json.dumps(skeleton))
        (folder / "config.yaml").write_text(config, encoding="utf-8")
    same_stage = [p for p in checkpoints(run) if p.name.startswith(trainer.counters.stage)]
    left_by_a_kill = path.parent.glob(".*.tmp")
    for old in [*same_stage[:-keep], *left_by_a_kill]:
        shutil.rmtree(old)
    return path


def load_checkpoint(path: str | Path, trainer: Trainer) -> None:
    """Restore a trainer, its model included, from a checkpoint folder.

    Raises:
        InputError: a file is missing, damaged or of another architecture or optimiser.
    """
    path = Path(path)
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
