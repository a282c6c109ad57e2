"""How time and memory grow: with chains, sampling steps, batch, image and dataset size; and how long a start takes.

python benchmarks/growth.py build/growth --threads 2
python benchmarks/growth.py build/growth --quick          # narrow networks, small numbers

Writes growth.json and growth.png into the folder. Dataset sizes are memory-mapped files of random images, trained from
as `gebm train` does; once also with so little memory said to be free that they stay on the disk.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from cases import BETA, FLOAT32, GAMMA, LATENT_DIM, Size, training
from timing import compare, environment, interleave, peak_bytes

from gebm.data import Batches, batches
from gebm.latent import GaussianPrior, LatentPosterior
from gebm.networks import BASES, ENERGIES
from gebm.samplers import Langevin, run

NETWORK = "sngan"
FULL = {
    "chains": (10, 30, 100, 300, 1000), "sampling steps": (10, 30, 100, 300), "batch": (16, 32, 64, 128, 256),
    "image size": (16, 32, 64), "images": (10_000, 100_000, 1_280_000),
}  # fmt: skip
QUICK = {
    "chains": (4, 16, 64), "sampling steps": (2, 8), "batch": (4, 16), "image size": (16, 32), "images": (1000, 10_000),
}  # fmt: skip


def posterior(size: Size) -> LatentPosterior:
    base = BASES[NETWORK](size.shape, latent_dim=LATENT_DIM, width=size.width)
    energy = ENERGIES[NETWORK](size.shape, width=size.width)
    return LatentPosterior(GaussianPrior(LATENT_DIM), base, energy, BETA).frozen()


def langevin(size: Size, steps: int) -> Callable[[], object]:
    """A run of chains."""
    target, kernel = posterior(size), Langevin.from_gamma(GAMMA)
    return lambda: run(kernel, target, target.start(size.chains), steps)


def energy_step(size: Size) -> Callable[[], object]:
    _, forms = next(training(NETWORK, size))
    return forms[FLOAT32]


def batch_from(folder: str, count: int, size: Size, on_disk: bool) -> Callable[[], object]:
    """A batch from a mapped file of that many images."""
    file = Path(folder) / f"{count}.npy"
    if not file.exists():
        mapped = np.lib.format.open_memmap(file, "w+", np.uint8, (count, *size.shape))
        for first in range(0, count, 10_000):
            part = mapped[first : first + 10_000]
            part[:] = np.random.RandomState(first).randint(256, size=part.shape, dtype=np.uint8)
        mapped.flush()
        del mapped, part
    own, batches.free_bytes = batches.free_bytes, lambda device: 0 if on_disk else float("inf")
    try:
        source = Batches(np.load(file, mmap_mode="r"), size.batch)
    finally:
        batches.free_bytes = own
    return lambda: next(source)


def cases(sizes: dict[str, tuple[int, ...]], size: Size, folder: str) -> Iterator[tuple[str, int, str, Callable]]:
    """(what grows, its value, what is timed, a call)."""
    for n in sizes["chains"]:
        yield "chains", n, "Langevin step", langevin(replace(size, chains=n), 1)
    for n in sizes["sampling steps"]:
        yield "sampling steps", n, "Langevin run of 10 chains", langevin(replace(size, chains=10), n)
    for n in sizes["batch"]:
        yield "batch", n, "energy step", energy_step(replace(size, batch=n))
    for n in sizes["image size"]:
        yield "image size", n, "energy step", energy_step(replace(size, image=n, batch=16))
    for n in sizes["images"]:
        for on_disk, what in ((False, "batch, in memory"), (True, "batch, on disk")):
            yield "images", n, what, batch_from(folder, n, size, on_disk)


def start_up(data_path: str) -> float:
    """Seconds from the shell to the first logged training step on CIFAR-10, its cache at hand."""
    with tempfile.TemporaryDirectory() as runs:
        words = "train --dataset cifar10 --total_gen_iter 1 --n_iter_d_init 1 --n_iter_d 1 --refine_iter 0 --b_size 4"
        command = [sys.executable, "-m", "gebm", *words.split(), "--disp_freq", "1", "--device", "-2", "--save_nothing"]
        command += ["--width", "0.1", "--data_path", data_path, "--log_dir", runs, "--log_name", "r"]
        begin = time.monotonic()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ}) as process:
            for line in process.stdout:
                if line.startswith("joint 1/1"):
                    seconds = time.monotonic() - begin
            if process.wait():
                raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    return seconds


def draw(rows: list[dict], file: Path) -> None:
    """Small multiples: time above, memory below, a column for each thing that grows."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    grown = list(dict.fromkeys(row["grows"] for row in rows))
    figure, axes = plt.subplots(2, len(grown), figsize=(3.2 * len(grown), 5.5), squeeze=False, layout="constrained")
    for column, what in enumerate(grown):
        own = [row for row in rows if row["grows"] == what]
        for timed in dict.fromkeys(row["timed"] for row in own):
            line = [row for row in own if row["timed"] == timed]
            x = [row["value"] for row in line]
            axes[0, column].loglog(x, [row["ms"] for row in line], "o-", label=timed)
            if all(row["peak_bytes"] is not None for row in line):
                axes[1, column].plot(x, [row["peak_bytes"] / 1e6 for row in line], "o-", label=timed)
        axes[1, column].set(xscale="log", xlabel=what, ylim=(0, None))
        axes[0, column].legend(fontsize="small", frameon=False)
        values = sorted({row["value"] for row in own})
        for axis in axes[:, column]:
            axis.set_xticks(values, [f"{value:,}" for value in values], fontsize="small")
            axis.set_xticks([], minor=True)
    axes[0, 0].set_ylabel("ms")
    axes[1, 0].set_ylabel("MB above what was there")
    figure.savefig(file, dpi=100)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write into")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2.0, help="a point")
    parser.add_argument("--data_path", default="", help="folder of CIFAR-10, prepared: times the start too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    size, found = Size(width=0.1 if args.quick else 1.0), []
    with tempfile.TemporaryDirectory(dir=args.out) as folder:
        for grows, value, timed, call in cases(QUICK if args.quick else FULL, size, folder):
            call()  # what libraries take once is no part of it
            peak = peak_bytes(call)
            column = interleave({"": call}, args.seconds, warm_up=1)[""]
            found.append({"grows": grows, "value": value, "timed": timed, "ms": compare(column, column).ms,
                          "peak_bytes": peak})  # fmt: skip
            memory = "-" if peak is None else f"{peak / 1e6:,.1f}"
            print(f"{grows:<16}{value:>10,}  {timed:<28}{found[-1]['ms']:>10.2f} ms{memory:>10} MB", flush=True)
    report = {"environment": environment(), "width": size.width, "rows": found}
    if args.data_path:
        report["start_up_s"] = min(start_up(args.data_path) for _ in range(3))
        print(f"start to the first training step on CIFAR-10: {report['start_up_s']:.2f} s")
    (args.out / "growth.json").write_text(json.dumps(report, indent=1) + "\n")
    draw(found, args.out / "growth.png")
    print(args.out / "growth.png")


if __name__ == "__main__":
    main()
