"""The commands of a row, and how one of them is run: once, or on from where it was cut off."""

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rows import Row, Scale, Setting

from gebm.cli import main
from gebm.files import atomic_write
from gebm.samplers import SAMPLERS

__all__ = ["FailedError", "Place", "Stage", "logged", "printed", "run_stage", "settings_of", "stages_of"]

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"


class FailedError(Exception):
    """A command of a row failed; the message is its last line."""


@dataclass(frozen=True)
class Place:
    """Where things lie: `out` holds runs, logs and tables, `data` the data sets."""

    out: Path
    data: str

    @property
    def runs(self) -> Path:
        return self.out / "runs"


@dataclass(frozen=True)
class Stage:
    """One command of gebm, which makes the folder `name` of the runs; `made`: the file that it writes last."""

    name: str
    command: str
    words: tuple[str, ...]
    made: str

    def folder(self, place: Place) -> Path:
        return place.runs / self.name

    @property
    def line(self) -> str:
        """As it is typed in the repository's root."""
        return " ".join(("gebm", self.command, *self.words)).replace(f"{ROOT}/", "")


def stages_of(row: Row, scale: Scale, place: Place) -> list[Stage]:
    """The commands of a row of images: training, then each of its settings."""
    pair = f"{row.dataset}-{row.network}"
    flags = {"dataset": row.dataset, "g_model": row.network, "d_model": row.network, **scale.train}
    found = [Stage(pair, "train", _words(scale.config, flags, pair, place), "report.html")]
    for setting in settings_of(row, scale):
        name, run = f"{pair}-{setting.name}", str(place.runs / pair)
        flags = {"dataset": row.dataset, "g_path": run, "d_path": run, **scale.sample, **shortened(setting, scale)}
        found.append(Stage(name, "sample", _words("sampling.yaml", flags, name, place), "report.html"))
    return found


def settings_of(row: Row, scale: Scale) -> list[Setting]:
    """The settings of a row that a scale runs."""
    return [s for s in row.settings if row.picture != "curves" or s.flags["temperature"] in scale.betas]


def shortened(setting: Setting, scale: Scale) -> dict[str, object]:
    """The flags of a setting with no more steps than the scale has, and gamma such that they go as far.

    Chains of k times fewer steps take steps h that are k times as long; decays come k times as early.
    """
    flags = dict(setting.flags)
    configured = yaml.safe_load((CONFIGS / "sampling.yaml").read_text()) | flags
    steps = int(configured["num_sampler_steps"])
    if steps <= scale.steps:
        return flags
    factor, power = steps / scale.steps, SAMPLERS[str(configured["latent_sampler"])].gamma_power
    flags |= {"num_sampler_steps": scale.steps, "step_decay_every": round(configured["step_decay_every"] / factor)}
    if power and configured["latent_sampler"] != "dot":  # whose steps go to a minimum, however many
        flags["lmc_gamma"] = float(f"{configured['lmc_gamma'] * factor ** (1 / power):.6g}")
    return flags


def _words(config: str, flags: dict[str, object], name: str, place: Place) -> tuple[str, ...]:
    flags = {**flags, "data_path": place.data, "log_dir": place.runs, "log_name": name}
    words: list[str] = []
    for flag, value in flags.items():
        words += [f"--{flag}", str(value).lower() if isinstance(value, bool) else str(value)]
    return "--config", str(CONFIGS / config), *words


def run_stage(stage: Stage, place: Place) -> float:
    """Run a command unless it is done; returns the seconds it took, all goes at it together.

    Beside the folder lies `NAME.json` with the words it was begun with: another row with the same name means the same
    run, and one begun with other words is refused.

    Raises:
        FailedError: the command failed, or its folder was made by another one.
        KeyboardInterrupt: it was interrupted, and goes on at the next call.
    """
    folder, record = stage.folder(place), place.runs / f"{stage.name}.json"
    begun: dict[str, Any] = {"command": stage.line, "seconds": 0.0}
    begun |= json.loads(record.read_text()) if folder.is_dir() and record.is_file() else {}
    if begun["command"] != stage.line:
        raise FailedError(f"{folder} was begun with another command, see {record}: remove both, or give another --out")
    if (folder / stage.made).is_file():
        return float(begun["seconds"])
    words = [stage.command, *stage.words]
    if stage.command == "train" and (folder / "config.yaml").is_file():
        words = ["train", "--resume", str(folder)]
    else:
        shutil.rmtree(folder, ignore_errors=True)  # what a kill left of sampling, which cannot be gone on with
    place.runs.mkdir(parents=True, exist_ok=True)
    _write(record, begun)
    begin = time.monotonic()
    try:
        logged(words, place.runs / f"{stage.name}.log")
    finally:
        begun["seconds"] += time.monotonic() - begin
        _write(record, begun)
    return float(begun["seconds"])


def _write(record: Path, begun: dict[str, Any]) -> None:
    with atomic_write(record) as temporary:
        temporary.write_text(json.dumps(begun) + "\n")


def logged(words: Sequence[str], log: Path) -> None:
    """Run one command of gebm in this process, what it prints going to the end of a file.

    Raises:
        FailedError: it failed.
        KeyboardInterrupt: it was interrupted.
    """
    with printed(log):
        code = main(words)
    if code >= 128:
        raise KeyboardInterrupt
    if code:
        last = log.read_text(encoding="utf-8").strip().splitlines()[-1]
        raise FailedError(f"{last.removeprefix('gebm: error: ')} (see {log})")


@contextmanager
def printed(log: Path) -> Iterator[None]:
    """What is printed goes to the end of a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        yield
