"""`gebm report RUN`: one page about a run, from what lies in its folder, its checkpoint and its data."""

import shlex
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

from gebm.bounded import read_json, read_json_lines
from gebm.checkpoints import checkpoints, newest_checkpoint, settings_beside
from gebm.commands.datasets import BUNDLED, dataset
from gebm.commands.history import Change, as_begun, read_history
from gebm.commands.metrics import check_features
from gebm.commands.pairs import folder_of, hashes_of, networks_of
from gebm.commands.records import compare_images
from gebm.commands.setup import choose_device, log, schedule_of, start_log
from gebm.config import Config, sections
from gebm.data import ImageData, at_random, from_uint8, to_uint8
from gebm.data.arrays import load_npz
from gebm.data.images import SOURCES
from gebm.errors import InputError
from gebm.files import atomic_write, check_writable
from gebm.metrics import Extractor, extract
from gebm.metrics.features import Pixels
from gebm.metrics.partition import base_energies, energies
from gebm.model import GEBM
from gebm.networks import ENERGIES
from gebm.parsing import ReportWords
from gebm.report import Chains, Neighbours, Report, Setting, closeness, nearest, render
from gebm.report.thinning import thinned
from gebm.text import show
from gebm.untrusted import check_plain, data_path_beside

__all__ = ["code_of", "main", "write_report"]

P = ParamSpec("P")
T = TypeVar("T")

IMAGES = 1000  # of each kind whose energies are shown
QUERIES = 400  # samples, and test images, whose nearest training images are looked for
SEARCHED = 50_000  # training images at most
SHOWN = 8  # pairs of samples and training images, and as many again
CHUNK = 250
PLACES = (
    "g_path", "d_path", "data_path", "imagenet_train_path", "imagenet_test_path", "fid_weights", "inception_weights"
)  # fmt: skip
PLACE = ("mode", "log_dir", "log_name")  # not settings: another run of these would have a place of its own


def main(words: ReportWords) -> None:
    """Write the page about the run that the words name."""
    start_log()
    run, allow = Path(words.run), {*words.allow}
    if not words.untrusted:
        allow |= networks_of(run)
    log.info("%s", write_report(run, allow, words.untrusted))


def write_report(run: Path, allow: Collection[str] = (), untrusted: bool = False) -> Path:
    """Write `report.html` into a run's folder; what cannot be shown is left out, with one line of warning.

    Arguments:
        run: the folder.
        allow: dotted paths that may be imported. A run's own word is not enough to run code by.
        untrusted: whether nothing outside the folder may be looked at that is not in `allow`.

    Raises:
        InputError: the folder is not a run's, or is `untrusted` and holds links.
    """
    file = run / "config.yaml"
    if untrusted:
        check_plain(run)
    if made := [name for name in ("likelihood.txt", "pairs.png") if (run / name).is_file()]:
        raise InputError(f"{run}: pages are of images; of a run on a table see {run / made[0]}")
    if not file.is_file() or (run / "training.json").is_file():
        raise InputError(f"{run}: not a run; give a folder that gebm train, sample or demo made")
    check_writable(run, "folder, a copy of this run")
    config = Config.load(file)
    if untrusted:
        config = replace(config, **{flag: getattr(Config, flag) for flag in PLACES})
        config = replace(config, data_path=data_path_beside(run, config.data_path))
    report = collect(run, config, allow, untrusted or bool(config.from_untrusted))
    text = render(report)
    if report.missing:
        reasons = "; ".join(f"{title.lower()} ({why})" for title, why in report.missing.items())
        log.warning("report: could not show all of %s", " ".join(reasons.split()))
    with atomic_write(run / "report.html") as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # names of files may be any bytes
    return run / "report.html"


def code_of(config: Config) -> set[str]:
    """The dotted paths that a configuration names."""
    return {name for name in (config.dataset, config.fid_features, config.g_model, config.d_model) if ":" in name}


def collect(run: Path, config: Config, allow: Collection[str] = (), untrusted: bool = False) -> Report:
    """All that the page shows of a run, and why the rest is missing."""
    settings = _settings(config)
    report = Report(run.resolve().name, run, [], _command(config.mode, settings), settings)

    def tried(title: str, make: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T | None:
        try:
            return make(*arguments, **options)
        except Exception as error:  # a report must not lose a run, whatever is wrong with what it looks at
            kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
            report.missing.setdefault(title, f"{kind}{error}")
            return None

    changes = tried("What was run", read_history, run) or []
    if untrusted:
        changes = [_without_places(change) for change in changes]
    if changes:
        report.command = _command(config.mode, _settings(as_begun(config, changes)))
        report.changes = [
            (c.checkpoint, [(f, _text(c.was[f]), _text(value)) for f, value in c.now.items()]) for c in changes
        ]
    report.rows = tried("Training", _rows, run / "stats.jsonl") or []
    report.evaluation = tried("Figures", _evaluation, run) or {}
    summary = tried("Figures", _json, run / "summary.json") or {}
    if summary:
        report.chains = tried("Samples", _chains, summary, run) or []
    images: dict[str, np.ndarray] = {}
    if (run / "samples.npz").is_file():
        images = tried("Samples", _arrays, run / "samples.npz") or {}
    model = tried("Energies", _model, run, config, allow)
    report.about = _about(run, config, model)
    data = tried("Nearest training images", _data, config, model, allow, untrusted)
    if data is not None:
        data = tried("Nearest training images", _compared, run, config, data, report)
    if model is not None and not summary:
        report.base_images = tried("Samples", _draw, model)
    report.energies = tried("Energies", _energies, model, data, images.get("energies")) or {}
    queries = images.get("samples", report.base_images)
    if data is not None and queries is not None:
        name = ("GEBM samples", "gebm") if "samples" in images else ("base samples", "base")
        extractor = tried("Nearest training images", _space, config, data, allow, untrusted)
        if extractor is not None:
            found = tried("Nearest training images", _neighbours, *name, queries[:QUERIES], data, extractor, config)
            report.neighbours = found
    return report


def _about(run: Path, config: Config, model: GEBM | None) -> list[tuple[str, str]]:
    latents = f"{config.Z_dim} {config.latent_noise} latents"
    has_floor = config.d_model in ENERGIES if model is None else hasattr(model.energy, "trunc")  # one's own need not
    floored = has_floor and not config.no_trunc
    rows = [
        ("command", f"gebm {config.mode}"),
        ("dataset", config.dataset),
        ("base", f"{config.g_model}, width {config.width:g}, {latents}"),
        ("energy", f"{config.d_model}, width {config.width:g}" + (", clamped to E >= -10" if floored else "")),
    ]
    if config.mode == "sample":
        rows += [("base from", config.g_path), ("energy from", config.d_path)]
        file = folder_of(Path(config.d_path)) / "config.yaml"
        if file.is_file() and (trained := Config.load(file).dataset) != config.dataset:
            rows.append(("trained on", trained))
    else:
        schedule = schedule_of(config)
        joint = schedule.base_steps if schedule.train_mode != "energy" else 0
        refine = schedule.refine_steps if schedule.refines else 0
        rows.append(("training", f"{joint} base steps, then {refine} energy steps with the base frozen"))
    written = [run / name for name in ("config.yaml", "stats.jsonl", "summary.json")]
    finished = _date(max(file.stat().st_mtime for file in written if file.is_file()))
    return [
        *rows,
        ("device", "CPU" if config.device == -2 else f"GPU {config.device}"),
        ("finished", finished),
        ("page made by", f"gebm {version('gebm')}, torch {torch.__version__}"),
    ]


def _date(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M %Z")
    except (ValueError, OverflowError, OSError):  # of a clock that was wrong by thousands of years
        return "at a time that no calendar has"


def _text(value: object) -> str:
    """A setting as it is written on a command line."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _without_places(change: Change) -> Change:
    was, now = ({flag: value for flag, value in of.items() if flag not in PLACES} for of in change[1:])
    return Change(change.checkpoint, was, now)


def _settings(config: Config) -> list[Setting]:
    return [
        Setting(title, f.name, f.metadata["help"], _text(getattr(config, f.name)), _text(f.default))
        for title, flags in sections(config.mode).items()
        for f in flags
        if f.name not in PLACE
    ]


def _command(mode: str, settings: Sequence[Setting]) -> list[str]:
    return [f"gebm {mode}", *(f"--{s.flag} {shlex.quote(s.value)}" for s in settings if s.value != s.default)]


def _rows(file: Path) -> list[Mapping[str, Any]]:
    return thinned(read_json_lines(file)) if file.is_file() else []


def _json(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


def _evaluation(run: Path) -> dict[str, Any]:
    """What was measured of the weights that the run has now."""
    found = _json(run / "evaluation.json")
    newest = newest_checkpoint(run) if "weights" in found else None
    if newest is not None and found["weights"] != hashes_of(newest, newest):
        raise InputError("evaluation.json is of other weights than the run has now; evaluate it again")
    return found


def _arrays(file: Path) -> dict[str, np.ndarray]:
    return load_npz(file, ("samples", "energies"))


def _chains(summary: Mapping[str, Any], folder: Path) -> list[Chains]:
    """The run's samples and, of a demo, those of the posterior."""
    title = f"Samples at beta {summary['beta']:g}" if summary["steps"] else "Samples of the base"
    others = _chains(summary["posterior"], folder / "posterior") if summary.get("posterior") else []
    return [Chains(title, summary, folder), *others]


def _check_allowed(what: str, name: str, allow: Collection[str]) -> None:
    if ":" in name and name not in allow:
        code = show(name)
        raise InputError(f"the run's {what} is code, `{code}`, which is run only if named: gebm report RUN {code}")


def _model(run: Path, config: Config, allow: Collection[str]) -> GEBM:
    """The pair that the run trained, or that it sampled from."""
    for what, name in (("base", config.g_model), ("energy", config.d_model)):
        _check_allowed(what, name, allow)
    if config.mode == "sample" and not config.g_path:
        raise InputError("the pair that was sampled lies outside the run")
    if config.mode == "sample":
        base, energy = Path(config.g_path), Path(config.d_path)
    elif not checkpoints(run):
        raise InputError(f"{run} holds no checkpoint")
    else:
        base = energy = run
    model = GEBM.load(base, energy, allow=allow, dtype=torch.float64 if config.dtype == 64 else torch.float32)
    if hasattr(model.energy, "trunc"):  # which a sampling run may have changed
        model.energy.trunc = not config.no_trunc  # type: ignore[assignment]  # torch: of tensors and modules alone
    return model.to(choose_device(config, frozenset()))


def _data(config: Config, model: GEBM | None, allow: Collection[str], untrusted: bool) -> ImageData:
    """The images that the energy was trained on."""
    file = settings_beside(folder_of(Path(config.d_path)))
    if config.mode == "sample" and config.d_path and file.is_file():  # whose own flags need not name the data
        trained = Config.load(file)
        config = replace(config, dataset=trained.dataset, image_size=trained.image_size)
    if untrusted and config.dataset not in (*BUNDLED, *allow):
        name = show(config.dataset)
        raise InputError(f"the run's dataset is {name}, read only if named: gebm report --from_untrusted RUN {name}")
    if config.dataset.partition(":")[0] not in SOURCES:
        _check_allowed("dataset", config.dataset, allow)
    data = dataset(config)
    assert isinstance(data, ImageData)
    if model is not None and data.shape != model.built_as.shape:
        raise InputError(f"{data.name} has images {data.shape}, the model's are {model.built_as.shape}")
    return data


def _compared(run: Path, config: Config, data: ImageData, report: Report) -> ImageData:
    """The images, where none of those for testing were trained on; that they have changed is told among the first."""
    weights = [run] if config.mode != "sample" else [Path(path) for path in (config.g_path, config.d_path) if path]
    if note := compare_images(data, *weights):
        report.about.append(("data", note))
        log.warning("report: %s", note)
    return data


@torch.no_grad()
def _draw(model: GEBM) -> np.ndarray:
    """Base samples, uint8 (QUERIES, C, H, W)."""
    generator = torch.Generator(model.log_partition.device).manual_seed(0)
    sizes = [min(CHUNK, QUERIES - i) for i in range(0, QUERIES, CHUNK)]
    return torch.cat([to_uint8(model.generate(n, generator)).cpu() for n in sizes]).numpy()


def _energies(
    model: GEBM | None, data: ImageData | None, e_samples: np.ndarray | None
) -> dict[str, tuple[str, np.ndarray]]:
    found: dict[str, tuple[str, np.ndarray]] = {}
    if model is not None and data is not None:
        like = model.log_partition.detach()
        for name, images, role in (("train images", data.train, "train"), ("test images", data.test, "test")):
            real = torch.from_numpy(at_random(images, IMAGES)).to(like.device)
            found[name] = role, energies(model.energy, from_uint8(real).to(like), CHUNK).numpy()
    if model is not None:
        generator = torch.Generator(model.log_partition.device).manual_seed(0)
        found["base samples"] = "base", base_energies(model, IMAGES, generator, CHUNK).numpy()
    if e_samples is not None:
        found["GEBM samples"] = "gebm", e_samples
    return found


def _space(config: Config, data: ImageData, allow: Collection[str], untrusted: bool) -> Extractor:
    """What the run's distance is computed on, where all training images are no more than it takes; else the pixels."""
    if not config.eval_fid or len(data.train) > config.fid_samples:
        return Pixels()
    _check_allowed("features", config.fid_features, allow)
    if untrusted and config.fid_features == "inception" and "inception" not in allow:
        raise InputError("the run's features are inception, whose weights are fetched only if named: ... RUN inception")
    return check_features(config, data, choose_device(config, frozenset()))


def _neighbours(
    name: str, role: str, samples: np.ndarray, data: ImageData, extractor: Extractor, config: Config
) -> Neighbours:
    device = choose_device(config, frozenset())
    searched = at_random(np.arange(len(data.train)), SEARCHED)

    def features(images: np.ndarray) -> Tensor:
        return extract(images, extractor, CHUNK, device).to(device, torch.float32)

    def batches() -> Iterator[Tensor]:
        for first in range(0, len(searched), 10 * CHUNK):
            yield features(data.train[searched[first : first + 10 * CHUNK]])

    test = at_random(data.test, QUERIES)
    found = nearest(torch.cat([features(samples), features(test)]), batches())
    distances, index = (values.cpu() for values in found)
    d_samples, d_test = torch.split(distances, [len(samples), len(test)])
    order = [*d_samples.argsort()[:SHOWN].tolist(), *range(min(SHOWN, len(samples)))]
    return Neighbours(
        space="pixels in [-1, 1]" if isinstance(extractor, Pixels) else f"{extractor.name} features",
        n_train=len(data.train),
        n_searched=len(searched),
        distances={"test images": ("test", d_test.numpy()), name: (role, d_samples.numpy())},
        closeness=closeness(d_samples, d_test),
        pairs=[(float(d_samples[i]), samples[i], data.train[searched[index[i]]]) for i in order],
        closest=min(SHOWN, len(samples)),
    )
