"""`gebm sample`."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from gebm import parallel
from gebm.commands.chains import (
    beta_of,
    check_sampler,
    check_space,
    draw_chains,
    sampler_summary,
    with_beta,
    with_precision,
)
from gebm.commands.datasets import check_named, dataset_for, made_with, with_data_of
from gebm.commands.density import units_of, write_rows
from gebm.commands.metrics import check_features, compare, distances_along, features_of, observed_features
from gebm.commands.pairs import folder_of, load_pair
from gebm.commands.records import compare_images
from gebm.commands.report import code_of, write_report
from gebm.commands.runs import check_new_run, log_dir, resolve, whole_run
from gebm.commands.setup import choose_device, interrupt_on_sigterm, join, log, progress, start_log
from gebm.commands.tables import settled, with_table_defaults
from gebm.config import Config
from gebm.data import ImageData, TableData
from gebm.errors import InputError
from gebm.files import atomic_folder, atomic_write, write_json
from gebm.model import GEBM
from gebm.networks.common import ENERGY_FLOOR
from gebm.pictures import save_gif, save_grid
from gebm.report import ess_row, metric_note, metric_rows, mixing_rows, mixing_warning, sampler_row, table
from gebm.samplers import DrawFiles
from gebm.sampling import Draws, Observer

__all__ = ["main", "sample_into", "spaced", "write_summary"]


def main(config: Config, given: frozenset[str]) -> Path:
    """Sample as configured; returns the folder of the samples."""
    start_log()
    config, given = settled(config, given)
    join(config)
    interrupt_on_sigterm()
    device = choose_device(config, given)
    model, base, energy = load_pair(config, given)
    rows = len(model.built_as.shape) == 1
    stored, named = made_with(folder_of(base)), config.dataset
    if stored is not None:
        if config.eval_fid or config.temperature == "auto":  # which read the data
            check_named(stored, config, given, base)
        if stored.dataset != config.dataset and "dataset" in given and not config.eval_fid:
            dataset_for(model, config)  # or the samples would be told of as another set's
        config = with_data_of(stored, config, given)
    config = with_table_defaults(config, given) if rows else config  # the dataset may not have been named
    check_sampler(config, chains_of(config))
    if rows and config.eval_fid:
        raise InputError("--eval_fid: distances are of images; gebm evaluate gives the likelihoods of a table's model")
    if config.thin and parallel.processes() > 1:
        raise InputError(f"--thin {config.thin}: one process writes its draws as they come; sample with one")
    units = units_of(model, base, energy) if rows else None
    if not rows and parallel.from_first(lambda: lacks_its_page(config, given, base, energy)):
        folder = log_dir(config) / config.log_name
        log.info("%s: its samples are there, so only its page is made", folder)
        if parallel.leave():
            report(folder, replace(Config.load(folder / "config.yaml"), dataset=named), given)
        return folder
    folder = parallel.from_first(lambda: check_new_run(config))
    data = dataset_for(model, config) if config.eval_fid else None
    assert not isinstance(data, TableData)
    if data is not None:
        check_features(config, data, device)
        if note := compare_images(data, base, energy):
            log.warning(note)
    check_space(config, chains_of(config), model.prior.dim, folder)
    model.to(device)
    config, fit = with_beta(config, model, energy, device)
    config = parallel.from_first(lambda: with_precision(config, model.posterior(beta_of(config))))
    resolved = resolve(folder, replace(config, g_path=str(base), d_path=str(energy)), device, model.built_as)
    log.info("sampling %s\n  base   %s\n  energy %s", folder, base, energy)
    with whole_run(folder, resolved) as made:
        with parallel.together("sample again, nothing was kept"):
            summary = sample_into(made, resolved, model, data, device, units)
        if not parallel.leave():
            return folder
        summary.update(base_path=str(base), energy_path=str(energy), temperature_fit=fit)
        text = summary_text(summary, made, folder)
        write_summary(made, summary, text)
    log.info("\n%s", text)
    if not rows:
        report(folder, replace(resolved, dataset=named), given)
    return folder


def report(folder: Path, config: Config, given: frozenset[str]) -> None:
    """Write the page about samples, and say where."""
    allow = {*code_of(config), config.fid_features}
    log.info("report: %s", write_report(folder, allow | ({config.dataset} if "dataset" in given else set())))


def lacks_its_page(config: Config, given: frozenset[str], base: Path, energy: Path) -> bool:
    """Whether the samples that are asked for are there, and a kill came before their page was written."""
    folder = log_dir(config) / config.log_name
    if not config.log_name or (folder / "report.html").exists() or not (folder / "summary.json").is_file():
        return False
    if not (folder / "config.yaml").is_file() or not (folder / "png").is_dir():
        return False
    stored = Config.load(folder / "config.yaml")
    settled = {"mode", "log_dir", "log_name", "g_path", "d_path", "from_untrusted", "device", "temperature"}
    same = all(getattr(stored, flag) == getattr(config, flag) for flag in given - settled - {"precision", "dataset"})
    weights = (stored.mode, stored.g_path, stored.d_path) == ("sample", str(base), str(energy))
    return same and weights and config.temperature in ("auto", stored.temperature)


def chains_of(config: Config) -> int:
    """Number of chains: as many as the samples, or as the distance takes."""
    return max(config.n_samples, config.fid_samples if config.eval_fid else 0)


def spaced(steps: int, count: int) -> list[int]:
    """At most `count` + 1 steps from 0 to `steps`, evenly."""
    return sorted({round(steps * i / max(count, 1)) for i in range(count + 1)})


def sample_into(
    folder: Path,
    config: Config,
    model: GEBM,
    data: ImageData | None,
    device: torch.device,
    units: TableData | None = None,
) -> dict[str, Any]:
    """Draw as configured, write pictures and samples into the folder, and return the summary.

    Arguments:
        data: the images that distances are taken to; None: none are.
        units: of the columns, for models of tables.

    Of several processes the first writes and has the summary.
    """
    n, steps = chains_of(config), config.num_sampler_steps
    observer = Observer(images_at=spaced(steps, 10), frames_at=spaced(steps, 24))
    if data is not None:
        extractor, reference = features_of(config, data, device)
        observer.images = observed_features(extractor, config, device)
    with (
        progress(-(-n // parallel.processes()) * steps, "chain steps") as observer.on_step,
        atomic_folder(folder / "draws") if config.thin else nullcontext() as draws_folder,
    ):
        if draws_folder is not None:
            observer.files = DrawFiles(draws_folder, n, steps, model.prior.dim, config.thin)
        draws = draw_chains(config, model.posterior(beta_of(config)), n, observer)
    if not parallel.is_first():
        return {}
    folder.mkdir(exist_ok=True)
    write_trace(folder, draws)
    if units is not None:
        write_rows(folder, draws, units, config.n_samples)
    else:
        write_samples(folder, draws, observer.frames, config.n_samples)
    floored = getattr(model.energy, "trunc", False)  # a user's energy may have no floor
    summary = {
        **sampler_summary(config, draws),
        "energy_start": float(draws.energies_start.mean()),
        "energy_end": float(draws.energies.mean()),
        "on_floor": float((floored & (draws.energies <= ENERGY_FLOOR)).float().mean()),
        "energy_trace": {str(step): float(torch.cat(e).mean()) for step, e in sorted(observer.energies.items())},
        "features": None,
    }
    if data is not None:
        observed = observer.features()
        summary.update(compare(observed, reference, extractor, f"{data.name} {config.fid_split}", device))
        summary["curve"] = distances_along(observed, reference, extractor, device)
    return {**summary, "warning": mixing_warning(summary)}


def write_trace(folder: Path, draws: Draws) -> None:
    """Write `trace.npz`, the diagnostics' raw material."""
    if draws.trace:
        with atomic_write(folder / "trace.npz") as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, **draws.trace)  # type: ignore[arg-type]  # numpy: one keyword is a switch


def write_samples(folder: Path, draws: Draws, frames: list[tuple[int, np.ndarray]], n: int) -> None:
    """Write `samples.npz`, single images under `png/`, grids of start, end and between, and the GIF."""
    with atomic_write(folder / "samples.npz") as temporary, open(temporary, "wb") as file:
        np.savez_compressed(
            file, samples=draws.images[:n], base=draws.start[:n], latents=draws.latents[:n].float().numpy(),
            energies=draws.energies[:n].float().numpy(),
        )  # fmt: skip
    (folder / "png").mkdir(exist_ok=True)
    for i, image in enumerate(draws.images[:n]):
        Image.fromarray(image.transpose(1, 2, 0).squeeze()).save(folder / "png" / f"{i:05d}.png")
    frames = sorted(frames, key=lambda frame: frame[0])
    save_grid(folder / "base.png", frames[0][1])
    save_grid(folder / "samples.png", draws.images[: len(frames[0][1])])
    for step, images in frames[:: max(1, len(frames) // 5)]:
        save_grid(folder / f"step-{step:05d}.png", images)
    if len(frames) > 1:
        save_gif(folder / "chains.gif", [images for _, images in frames])


def summary_text(summary: dict[str, Any], made: Path, folder: Path) -> str:
    """What a summary comes to in words, of files in `made` that will be in `folder`."""
    rows = [
        sampler_row(summary),
        *mixing_rows(summary),
        ("mean energy", f"{summary['energy_start']:.3f} at the start, {summary['energy_end']:.3f} at the end"),
        ess_row(summary),
    ]
    if summary["on_floor"]:
        rows.append(("on the floor E = -10", f"{summary['on_floor']:.1%} of the samples: the energy is flat there"))
    pictures = [name for name in ("samples.png", "chains.gif", "pairs.png") if (made / name).is_file()]
    written = next(name for name in ("samples.csv", "samples.npz") if (made / name).is_file())
    rows += [("samples", str(folder / written)), ("pictures", f"{folder}/{', '.join(pictures)}")]
    text = table(rows, folder.name)
    if summary["features"]:
        text += f"\n\n{table(metric_rows(summary))}\n{metric_note(summary)}"
    if summary["warning"]:
        text += f"\n\n{summary['warning']}"
    return text


def write_summary(folder: Path, summary: dict[str, Any], text: str) -> None:
    """Write `summary.json` and `summary.txt`."""
    write_json(folder / "summary.json", summary)
    with atomic_write(folder / "summary.txt") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
