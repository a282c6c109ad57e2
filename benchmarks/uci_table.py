"""The published table of test likelihoods on UCI sets, made again: sets x methods, five splits a cell.

python benchmarks/uci_table.py runs/uci --data_path ../shared/data --markdown
python benchmarks/uci_table.py runs/uci --only redwine/kale          # one cell alone

A cell is `gebm train --config configs/uci/METHOD.yaml --n_splits 5` in a folder of its own, run as it is written here;
one that is finished is read, one that was cut off goes on.
The published figures are those of reproduce/published.yaml; reproduce/run.py runs the same cells as its rows uci-SET.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from gebm.config import UCI, Config

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs" / "uci"
METHODS = ("ml", "cd", "donsker", "kale", "best")
# Chosen on validation rows: at 1e-3 a few heavy weights throw the energy of Parkinsons off.
OWN: dict[str, dict[str, object]] = {
    "redwine": {"lr": 1e-3, "total_epochs": 500},
    "whitewine": {"lr": 1e-3, "total_epochs": 250},
    "parkinsons": {"lr": 2e-4, "total_epochs": 20},
}
PUBLISHED: dict[str, dict[str, str]] = yaml.safe_load((ROOT / "reproduce" / "published.yaml").read_text())["uci"]

Cell = tuple[str, str]  # dataset, method
Run = Callable[[Sequence[str], Path], None]  # (words after gebm, log); raises OSError or another error if it fails


def command(folder: Path, cell: Cell, args: argparse.Namespace) -> list[str]:
    """The words after `gebm` of a cell: a new run, or what is left of one."""
    resumes = (folder / "config.yaml").is_file()
    return ["train", "--device", "-2", "--resume", str(folder)] if resumes else begin(folder, cell, args)


def begin(folder: Path, cell: Cell, args: argparse.Namespace) -> list[str]:
    """The words of a new run."""
    dataset, method = cell
    words = ["train", "--device", "-2", "--config", str(CONFIGS / f"{method}.yaml"), "--dataset", dataset]
    words += ["--data_path", args.data_path, "--protocol", args.protocol, "--seed", "1", "--n_splits", str(args.splits)]
    for flag, value in own(cell, args).items():
        words += [f"--{flag}", str(value)]
    return [*words, "--log_dir", str(folder.parent), "--log_name", folder.name]


def own(cell: Cell, args: argparse.Namespace) -> dict[str, object]:
    """Flags of a cell beside those of its method's file; none above what `args.most` has for it."""
    flags = OWN.get(cell[0], {}) if cell[1] in ("kale", "donsker") else {}
    settings = asdict(Config.load(CONFIGS / f"{cell[1]}.yaml")) | flags
    return flags | {flag: min(settings[flag], most) for flag, most in args.most.items()}


def folder_of(cell: Cell, args: argparse.Namespace) -> Path:
    return Path(args.out) / f"{args.protocol}-{'-'.join(cell)}"


def other_settings(folder: Path, cell: Cell, args: argparse.Namespace) -> str:
    """Settings of a folder's run that are not those a new one would have: --flag value; empty: none."""
    stored = Config.load(folder / "config.yaml")
    wanted = yaml.safe_load((CONFIGS / f"{cell[1]}.yaml").read_text()) | own(cell, args)
    wanted["n_splits"] = args.splits
    different = {k: getattr(stored, k) for k, v in wanted.items() if k != "disp_freq" and getattr(stored, k) != v}
    return ", ".join(f"--{k} {v}" for k, v in different.items())


def in_a_process(words: Sequence[str], log: Path) -> None:
    """Run `gebm` in a process of its own, one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(log, "a") as file:
        command = [sys.executable, "-m", "gebm", *words]
        code = subprocess.run(command, stdout=file, stderr=file, env=environment).returncode
    if code:
        raise OSError(f"exit code {code}, see {log}")


def run_cell(cell: Cell, args: argparse.Namespace, run: Run = in_a_process) -> dict[str, Any]:
    """Its likelihoods, after running what is missing.

    Raises:
        OSError: it failed, or its folder was made with other settings; and what `run` raises.
    """
    folder = folder_of(cell, args)
    begin = time.monotonic()
    if (folder / "config.yaml").is_file() and (other := other_settings(folder, cell, args)):
        raise OSError(f"{folder}: made with other settings, {other}: remove it, or give another OUT")
    if not (folder / "likelihood.json").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        run(command(folder, cell, args), folder.with_suffix(".log"))
    summary: dict[str, Any] = json.loads((folder / "likelihood.json").read_text())
    test = summary["nll"]["test"]
    took = f"{(time.monotonic() - begin) / 60:.1f} min"
    print(f"{'/'.join(cell)}: base {test['base']['value']:.3f}, GEBM {test['gebm']['value']:.3f}, {took}", flush=True)
    return summary


def tried(cell: Cell, args: argparse.Namespace) -> dict[str, Any] | None:
    """`run_cell`; of a cell that failed the reason is printed, and there is None."""
    try:
        return run_cell(cell, args)
    except OSError as error:
        print(f"{'/'.join(cell)}: {error}", flush=True)
        return None


def show(nll: Mapping[str, float]) -> str:
    return f"{nll['value']:.2f} +- {nll['se']:.2f}"


def rows(
    found: Mapping[Cell, Mapping[str, Any] | None], sets: Sequence[str], methods: Sequence[str]
) -> Iterator[list[str]]:
    """Markdown cells, a row a method and a row what was published of it."""
    yield ["test NLL, nats", *sets]
    yield ["---"] * (len(sets) + 1)
    for method in methods:
        shown = []
        for dataset in sets:
            test = (found.get((dataset, method)) or {"nll": {"test": None}})["nll"]["test"]
            shown.append("-" if test is None else f"{show(test['gebm'])} (base {test['base']['value']:.2f})")
        yield [f"**{method}**, ours", *shown]
        yield [PUBLISHED[method]["title"], *(PUBLISHED[method].get(dataset, "-") for dataset in sets)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the runs")
    parser.add_argument("--data_path", default="data", help="folder of the datasets")
    parser.add_argument("--protocol", choices=("paper", "standard"), default="paper")
    parser.add_argument("--sets", nargs="+", choices=UCI, default=["redwine", "whitewine", "parkinsons"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--only", nargs="+", default=[], metavar="SET/METHOD", help="these cells alone")
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="cells side by side, one thread each")
    parser.add_argument("--markdown", action="store_true", help="print the table for docs/results.md")
    args = parser.parse_args()
    args.most = {}
    cells = [tuple(cell.split("/")) for cell in args.only] or list(product(args.sets, args.methods))
    if unknown := [cell for cell in cells if len(cell) != 2 or cell[0] not in UCI or cell[1] not in METHODS]:
        parser.error(f"--only {'/'.join(unknown[0])}: give SET/METHOD, as redwine/kale")
    with ThreadPoolExecutor(args.jobs) as pool:
        found = dict(zip(cells, pool.map(lambda cell: tried(cell, args), cells)))
    if args.markdown:
        print(*(f"| {' | '.join(row)} |" for row in rows(found, args.sets, args.methods)), sep="\n")
    return 1 if None in found.values() else 0


if __name__ == "__main__":
    sys.exit(main())
