"""The units of the table that a model was trained on, kept beside its weights, which mean nothing without them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gebm.bounded import reason
from gebm.data.arrays import load_npz
from gebm.data.columns import Dropped
from gebm.data.tabular import TableData
from gebm.errors import InputError
from gebm.files import atomic_write
from gebm.pretrained import CONFIG, WEIGHTS, read_config

__all__ = ["UNITS", "as_json", "exported", "load_units", "save_units", "shared_units", "units_beside"]

UNITS = "table.npz"
DROPPED = ("offset", "weights", "tolerance", "unit")


def save_units(run: Path, data: TableData) -> None:
    """Write `table.npz` into a run: whitening, columns and validation rows, which sampling and scoring go by."""
    optional: dict[str, Any] = {} if data.noise is None else {"noise": data.noise}
    if data.named is not None:
        optional["named"] = data.named
    if data.dropped is not None:
        optional["dropped"] = np.array(data.dropped.columns, str)
        optional |= {f"dropped_{part}": getattr(data.dropped, part) for part in DROPPED}
    with atomic_write(run / UNITS) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(
            file, name=data.name, columns=np.array(data.columns), valid=data.valid, mean=data.mean,
            whitening=data.whitening, shift=data.shift, protocol=data.protocol, seed=data.seed, key=data.key,
            width=data.width, **optional,
        )  # fmt: skip


def as_json(units: TableData) -> dict[str, Any]:
    """The same in plain numbers and texts, without any rows, for the `config.json` of an exported folder."""
    found: dict[str, Any] = {
        "name": units.name, "columns": list(units.columns), "mean": units.mean.tolist(),
        "whitening": units.whitening.tolist(), "shift": units.shift, "protocol": units.protocol, "seed": units.seed,
        "key": units.key, "width": units.width,
    }  # fmt: skip
    if units.noise is not None:
        found["noise"] = units.noise.tolist()
    if units.named is not None:
        found["named"] = units.named
    if units.dropped is not None:
        found["dropped"] = list(units.dropped.columns)
        found |= {f"dropped_{part}": getattr(units.dropped, part).tolist() for part in DROPPED}
    return found


def load_units(weights: Path) -> TableData:
    """The table that a run was trained on, of which `save_units` kept the validation rows, from one of its weights; of
    an exported folder, which has none of them."""
    export = exported(weights)
    if export is not None:
        return _units(_folder_of(weights) / CONFIG, _arrays_of(export))
    file = _file_beside(weights)
    if file is None:
        raise InputError(f"{weights}: no {UNITS} of a run beside it, so the units of its columns are not known")
    try:
        arrays = load_npz(file)
        if not len(arrays["valid"]):
            raise ValueError("no validation rows")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{file}: damaged ({reason(error)}); train again") from None
    return _units(file, arrays)


def units_beside(weights: Path) -> TableData | None:
    """What `load_units` finds; None where there is nothing of it."""
    export = exported(weights)
    return load_units(weights) if (_file_beside(weights) if export is None else "table" in export) else None


def shared_units(base: Path, energy: Path) -> TableData | None:
    """The units that the two halves of a pair work in; None where those of either are not known.

    Raises:
        InputError: they were trained on different tables, units or splits.
    """
    ours = units_beside(base)
    theirs = ours if energy == base else units_beside(energy)
    if ours is None or theirs is None:
        return None
    if ours.key != theirs.key:
        base_of, energy_of = (f"{t.name} {t.protocol} seed {t.seed}" for t in (ours, theirs))
        raise InputError(
            f"{energy}: an energy of {energy_of}, in other rows or units than the base {base}, of {base_of}; "
            "give two that were trained on the same table, --scaling, --columns, --protocol and --seed"
        )
    return ours


def exported(weights: Path) -> dict[str, Any] | None:
    """The configuration of the exported folder that weights are of; None: they are a run's."""
    folder = _folder_of(weights)
    return read_config(folder) if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file() else None


def _folder_of(weights: Path) -> Path:
    return weights.parent if weights.is_file() else weights


def _file_beside(weights: Path) -> Path | None:
    folder = _folder_of(weights).absolute()
    folders = (folder, folder.parent.parent) if folder.parent.name == "checkpoints" else (folder,)
    return next((folder / UNITS for folder in folders if (folder / UNITS).is_file()), None)


def _arrays_of(export: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of `table.npz` from `config.json`; no rows, and nothing at all if they are not of numbers."""
    table = export.get("table")
    if not isinstance(table, dict):
        return {}
    try:
        optional = [key for key in ("noise", *(f"dropped_{part}" for part in DROPPED)) if key in table]
        numbers = {key: np.array(table[key], np.float64) for key in ("mean", "whitening", "shift", *optional)}
        texts = {key: np.array(table[key]) for key in ("name", "columns", "protocol", "seed", "key")}
        texts |= {key: np.array(table[key]) for key in ("named", "dropped") if key in table}
        texts["width"] = np.array(table.get("width", 0))
        return {**numbers, **texts, "valid": np.empty((0, len(table["columns"])), np.float32)}
    except (KeyError, TypeError, ValueError):
        return {}


def _units(file: Path, arrays: Mapping[str, np.ndarray]) -> TableData:
    try:
        d = len(arrays["columns"])
        noise = arrays.get("noise", np.zeros((d, d)))
        shapes = [array.shape for array in (arrays["mean"], arrays["whitening"], noise)], arrays["valid"].shape[1:]
        finite = all(np.isfinite(arrays[key]).all() for key in ("mean", "whitening", "valid", "shift"))
        if shapes != ([(d,), (d, d), (d, d)], (d,)) or not (finite and np.isfinite(noise).all()):
            raise ValueError("arrays of the wrong shape, or not finite")
        if not np.isfinite(np.linalg.slogdet(arrays["whitening"])[1]):
            raise ValueError("its whitening has no inverse")
        none = np.empty((0, d), np.float32)
        return TableData(
            name=str(arrays["name"]), columns=tuple(map(str, arrays["columns"])), train=none, valid=arrays["valid"],
            test=none, mean=arrays["mean"], whitening=arrays["whitening"], protocol=str(arrays["protocol"]),
            seed=int(arrays["seed"]), key=str(arrays["key"]), notes=(), shift=float(arrays["shift"]),
            noise=noise.astype(np.float32) if "noise" in arrays else None, width=int(arrays.get("width", 0)),
            named=bool(arrays["named"]) if "named" in arrays else None, dropped=_dropped(arrays, d),
        )  # fmt: skip
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise InputError(f"{file}: the units of its columns are missing or damaged ({reason(error)})") from None


def _dropped(arrays: Mapping[str, np.ndarray], d: int) -> Dropped | None:
    """None of a run from before they were kept."""
    if "dropped" not in arrays:
        return None
    columns = tuple(map(str, arrays["dropped"]))
    known = {"dropped_unit": np.zeros(d + len(columns)), **arrays}  # older versions wrote none
    offset, weights, tolerance, unit = (np.asarray(known[f"dropped_{part}"], np.float64) for part in DROPPED)
    weights = weights.reshape(d, len(columns))  # of no columns, JSON gives [[], ...] or []
    if unit.shape != (d + len(columns),) or not np.isfinite(unit).all():
        raise ValueError("decimals of columns, of the wrong shape or not finite")
    if offset.shape != tolerance.shape or offset.shape != (len(columns),) or not np.isfinite(weights).all():
        raise ValueError("columns that others determine, of the wrong shape or not finite")
    if not (np.isfinite(offset).all() and np.isfinite(tolerance).all()):
        raise ValueError("columns that others determine, not finite")
    return Dropped(columns, offset, weights, tolerance, unit)
