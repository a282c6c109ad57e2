"""The published table of test likelihoods on UCI sets, made again: sets x methods, five splits a cell.

python benchmarks/uci_table.py runs/uci --data_path ../shared/data --markdown
python benchmarks/uci_table.py runs/uci --only redwine/kale          # one cell alone

A cell is `gebm train --config configs/uci/METHOD.yaml --n_splits 5` in a folder of its own, run as it is written here;
one that is finished is read, one that was cut off goes on.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import yaml

from gebm.config import UCI, Config

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "uci"
METHODS = ("ml", "cd", "donsker", "kale", "best")
# Chosen on validation rows: at 1e-3 a few heavy weights throw the energy of Parkinsons off.
OWN = {
    "redwine": ["--lr", "1.0e-3", "--total_epochs", "500"],
    "whitewine": ["--lr", "1.0e-3", "--total_epochs", "250"],
    "parkinsons": ["--lr", "2.0e-4", "--total_epochs", "20"],
}
# Test likelihoods in nats: (published, mark). M+: from memory, a seen number agrees; M: from memory; S: seen.
PUBLISHED = {
    "ml": ("paper, ML", {"redwine": "11.98 [M+]", "whitewine": "13.05 [M+]", "parkinsons": "14.5 [M+]"}),
    "cd": ("paper, CD", {"redwine": "11.88 [M]", "whitewine": "13.01 [M]", "parkinsons": "14.06 [M]"}),
    "donsker": ("paper, KALE-DV", {"redwine": "11.6 [M+]", "whitewine": "12.77 [M+]", "parkinsons": "13.26 [M+]"}),
    "kale": ("paper, KALE-F", {"redwine": "11.19 [M+]", "whitewine": "12.66 [M+]", "parkinsons": "13.26 [M+]"}),
    "best": ("best flow (NVP)", {"redwine": "12.14 [S]", "whitewine": "12.87 [S]", "parkinsons": "12.19 [S]"}),
}  # fmt: skip


def command(folder: Path, cell: tuple[str, str], args: argparse.Namespace) -> list[str]:
    """The command of a cell: a new run, or what is left of one."""
    dataset, method = cell
    words = [sys.executable, "-m", "gebm", "train", "--device", "-2"]
    if (folder / "config.yaml").is_file():
        return [*words, "--resume", str(folder)]
    words += ["--config", str(CONFIGS / f"{method}.yaml"), "--dataset", dataset, "--data_path", args.data_path]
    words += ["--protocol", args.protocol, "--seed", "1", "--n_splits", str(args.splits)]
    words += own(cell)
    return [*words, "--log_dir", str(folder.parent), "--log_name", folder.name]


def own(cell: tuple[str, str]) -> list[str]:
    """Flags of a cell beside those of its method's file."""
    dataset, method = cell
    return OWN.get(dataset, []) if method in ("kale", "donsker") else []


def other_settings(folder: Path, cell: tuple[str, str]) -> str:
    """Settings of a folder's run that are not those a new one would have: --flag value; empty: none."""
    stored = Config.load(folder / "config.yaml")
    wanted = yaml.safe_load((CONFIGS / f"{cell[1]}.yaml").read_text())
    wanted |= {flag.removeprefix("--"): yaml.safe_load(value) for flag, value in zip(own(cell)[::2], own(cell)[1::2])}
    different = {k: getattr(stored, k) for k, v in wanted.items() if k != "disp_freq" and getattr(stored, k) != v}
    return ", ".join(f"--{k} {v}" for k, v in different.items())


def run_cell(cell: tuple[str, str], args: argparse.Namespace) -> dict | None:
    """Its likelihoods, after running what is missing; None if it failed."""
    folder = args.out / f"{args.protocol}-{'-'.join(cell)}"
    found = folder / "likelihood.json"
    begin = time.monotonic()
    if (folder / "config.yaml").is_file() and (other := other_settings(folder, cell)):
        print(f"{folder}: made with other settings, {other}: remove it, or give another OUT", flush=True)
        return None
    if not found.is_file():
        args.out.mkdir(parents=True, exist_ok=True)
        with open(folder.with_suffix(".log"), "a") as log:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            code = subprocess.run(command(folder, cell, args), stdout=log, stderr=log, env=environment).returncode
        if code:
            print(f"{'/'.join(cell)}: exit code {code}, see {log.name}", flush=True)
            return None
    summary = json.loads(found.read_text())
    test = summary["nll"]["test"]
    took = f"{(time.monotonic() - begin) / 60:.1f} min"
    print(f"{'/'.join(cell)}: base {test['base']['value']:.3f}, GEBM {test['gebm']['value']:.3f}, {took}", flush=True)
    return summary


def show(nll: dict) -> str:
    return f"{nll['value']:.2f} +- {nll['se']:.2f}"


def rows(found: dict[tuple[str, str], dict | None], sets: list[str], methods: list[str]) -> Iterator[list[str]]:
    """Markdown cells, a row a method and a row what was published of it."""
    yield ["test NLL, nats", *sets]
    yield ["---"] * (len(sets) + 1)
    for method in methods:
        shown = []
        for dataset in sets:
            test = (found.get((dataset, method)) or {"nll": {"test": None}})["nll"]["test"]
            shown.append("-" if test is None else f"{show(test['gebm'])} (base {test['base']['value']:.2f})")
        yield [f"**{method}**, ours", *shown]
        title, published = PUBLISHED[method]
        yield [title, *(published.get(dataset, "-") for dataset in sets)]


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
    cells = [tuple(cell.split("/")) for cell in args.only] or list(product(args.sets, args.methods))
    if unknown := [cell for cell in cells if len(cell) != 2 or cell[0] not in UCI or cell[1] not in METHODS]:
        parser.error(f"--only {'/'.join(unknown[0])}: give SET/METHOD, as redwine/kale")
    with ThreadPoolExecutor(args.jobs) as pool:
        found = dict(zip(cells, pool.map(lambda cell: run_cell(cell, args), cells)))
    if args.markdown:
        print(*(f"| {' | '.join(row)} |" for row in rows(found, args.sets, args.methods)), sep="\n")
    return 1 if None in found.values() else 0


if __name__ == "__main__":
    sys.exit(main())
