"""The results of the paper, made again: one row each, with what was published beside it.

python reproduce/run.py --list                              # all rows: data, commands, cost
python reproduce/run.py fid-cifar10-sngan --data_path data  # one row as published: GPU-days
python reproduce/run.py uci toy --scale small               # groups of rows, at a size that a CPU core reaches
python reproduce/run.py all --scale tiny                    # every row in minutes, on small stand-in data
python reproduce/run.py --summary --scale small             # one table of all rows that are done

What was cut off goes on when the same command is given again; what is done is not done twice. reproduce/README.md says
what may be compared with what.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import costs  # first: it makes benchmarks/ and examples/ importable
import results
import standins
import uci_table
from rows import DATA, ROWS, SCALES, Row, Scale
from stages import FailedError, Place, logged, printed, run_stage, stages_of

from gebm.parsing import parse


def make_images(row: Row, scale: Scale, place: Place) -> dict[str, Any]:
    """Train, sample with every setting, and read what came of it."""
    stages = stages_of(row, scale, place)
    seconds = sum(run_stage(stage, place) for stage in stages)
    figures = results.image_figures(row, scale, place, stages)
    return {"figures": figures, "pictures": results.pictures_of(row, place, figures), "seconds": seconds,
            "published": results.published()[row.name]}  # fmt: skip


def make_table(row: Row, scale: Scale, place: Place) -> dict[str, Any]:
    """Every method of the published table on one set."""
    args, found = cells_of(scale, place), {}
    for method in uci_table.METHODS:
        cell = row.dataset, method
        try:
            found[cell] = uci_table.run_cell(cell, args, logged)
        except OSError as error:
            raise FailedError(str(error)) from None
    figures = results.uci_figures(found, results.published()["uci"])
    return {"figures": figures, "pictures": [], "published": results.published()["uci-notebook"]}


def cells_of(scale: Scale, place: Place) -> argparse.Namespace:
    """What benchmarks/uci_table.py is told."""
    return argparse.Namespace(
        out=place.runs, data_path=place.data, protocol="paper", splits=scale.splits, most=scale.table
    )


def make_toy(row: Row, scale: Scale, place: Place) -> dict[str, Any]:
    """The gallery of toys."""
    file = place.runs / "toy.json"
    if not file.is_file():
        import toy_gallery

        with printed(place.runs / "toy.log"):
            toy_gallery.main(toy_words(scale, place))
    cells = json.loads(file.read_text())
    return {"figures": results.toy_figures(cells), "cells": cells, "published": results.published()[row.name],
            "pictures": ["toy-gallery.png", "toy-line-flower.png"]}  # fmt: skip


def toy_words(scale: Scale, place: Place) -> list[str]:
    return ["--out", str(place.out), "--json", str(place.runs / "toy.json"), *(["--tiny"] if scale.quick else [])]


MAKE: dict[str, Callable[[Row, Scale, Place], dict[str, Any]]] = {
    "images": make_images, "table": make_table, "toy": make_toy,
}  # fmt: skip


def commands_of(row: Row, scale: Scale, place: Place) -> list[str]:
    """What a row runs, as it would be typed."""
    if row.kind == "images":
        return [stage.line for stage in stages_of(row, scale, place)]
    if row.kind == "toy":
        return [" ".join(["python examples/toy_gallery.py", *toy_words(scale, place)])]
    args = cells_of(scale, place)
    cells = [(row.dataset, method) for method in uci_table.METHODS]
    return ["gebm " + " ".join(uci_table.begin(uci_table.folder_of(cell, args), cell, args)) for cell in cells]


def cost_of(row: Row, scale: Scale, place: Place) -> str:
    """What a row costs, by arithmetic."""
    if row.kind == "toy":
        return "under five minutes of one CPU thread (measured)"
    if row.kind == "table":
        args = cells_of(scale, place)
        cells = [(row.dataset, method) for method in uci_table.METHODS]
        words = [uci_table.begin(uci_table.folder_of(cell, args), cell, args) for cell in cells]
        return costs.of_table(row.dataset, [parse(rest, "train")[0] for _, *rest in words], scale.splits)
    train, *samples = stages_of(row, scale, place)
    trained, _ = parse(train.words, "train")
    counted = {train.name: costs.of_training(trained)}
    counted |= {stage.name: costs.of_sampling(parse(stage.words, "sample")[0], trained) for stage in samples}
    return costs.of_images(counted)


def chosen(names: Sequence[str]) -> list[Row]:
    """The rows of names, of groups (`uci` is all of `uci-...`), or of `all`; raises KeyError for another name."""
    found: dict[str, Row] = {}
    for name in names:
        rows = {n: row for n, row in ROWS.items() if name == "all" or n == name or n.startswith(f"{name}-")}
        if not rows:
            raise KeyError(name)
        found |= rows
    return list(found.values())


def run_row(row: Row, scale_name: str, place: Place) -> None:
    """Run what is missing of a row and write its page; raises FailedError."""
    scale, file, since = SCALES[scale_name], place.out / f"{row.name}.json", time.monotonic()
    earlier = json.loads(file.read_text())["seconds"] if file.is_file() else 0.0
    made = MAKE[row.kind](row, scale, place)
    made.setdefault("seconds", earlier + time.monotonic() - since)
    result = {
        "row": row.name, "title": row.title, "kind": row.kind, "dataset": row.dataset, "scale": scale_name,
        "stand_in": scale.stand_ins and row.kind != "toy", "commands": commands_of(row, scale, place),
        "cost": cost_of(row, scale, place), **made,
    }  # fmt: skip
    results.page(result, place)


def show(row: Row, scale: Scale, place: Place) -> str:
    data = "small stand-ins, made by this script" if scale.stand_ins and row.dataset else DATA[row.dataset]
    lines = [f"{row.name}: {row.title}", f"  data: {data}", *(f"  {line}" for line in commands_of(row, scale, place))]
    return "\n".join([*lines, *(f"  {line}" for line in cost_of(row, scale, place).splitlines())])


def write_summary(place: Place) -> str:
    """One table of all rows that have been run, written and returned."""
    files = [place.out / f"{name}.json" for name in ROWS]
    text = results.summary([json.loads(file.read_text()) for file in files if file.is_file()])
    place.out.mkdir(parents=True, exist_ok=True)
    (place.out / "summary.md").write_text(text, encoding="utf-8")
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0; 1 if a row failed; 130 if it was interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="names of rows, of groups of rows, or all")
    parser.add_argument("--scale", choices=SCALES, default="full")
    parser.add_argument("--out", type=Path, help="folder of runs and tables [runs/reproduce-SCALE]")
    parser.add_argument("--data_path", default="data", help="folder of the data sets; tiny makes its own")
    parser.add_argument("--list", "--dry_run", action="store_true", help="print data, commands and cost, run nothing")
    parser.add_argument("--summary", action="store_true", help="print one table of all rows that are done")
    args = parser.parse_args(argv)
    try:
        rows = chosen(args.rows or (["all"] if args.list else []))
    except KeyError as error:
        parser.error(f"no row {error.args[0]}; rows: {', '.join(ROWS)}")
    if not (rows or args.summary):
        parser.error("name rows, or give --list or --summary")
    scale, out = SCALES[args.scale], args.out or Path("runs") / f"reproduce-{args.scale}"
    place = Place(out, str(out / "stand-ins") if scale.stand_ins else args.data_path)
    if args.list:
        print("\n\n".join(show(row, scale, place) for row in rows))
        return 0
    failed = run_rows(rows, args.scale, place)
    if args.summary:
        print(write_summary(place))
    return failed


def run_rows(rows: Sequence[Row], scale_name: str, place: Place) -> int:
    """Run rows one by one, and go on after one that failed; returns the exit code."""
    code, scale = 0, SCALES[scale_name]
    if scale.stand_ins and rows:
        standins.write(Path(place.data))
    with standins.fewer() if scale.stand_ins else nullcontext():
        for row in rows:
            print(f"{row.name} ...", flush=True)
            try:
                run_row(row, scale_name, place)
            except FailedError as error:
                print(f"{row.name}: not done: {error}\n  data: {DATA[row.dataset]}", file=sys.stderr)
                code = 1
            except KeyboardInterrupt:
                print("interrupted: the same command goes on", file=sys.stderr)
                return 130
            else:
                print(f"{row.name}: {place.out / row.name}.md", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
