"""The suite: time, memory and arithmetic of every step, beside a plain eager baseline.

python benchmarks/bench.py                        # quick: narrow networks, two minutes; finds errors, not speeds
python benchmarks/bench.py --mode full --threads 2 --json build/bench.json
python benchmarks/bench.py --mode full --only "energy step" langevin

Forms of one case are timed in turn, the baseline in a process of its own: ours keeps freed memory, as a command of gebm
does, and a plain process gives it back. Ratios are medians over rounds of baseline time / own time, with
their 10 to 90 % range. Arithmetic: operations of convolutions and products that the form does (fewer than the
baseline's where pairs of layers are one), as a share of the rate of a 2048 x 2048 product in the form's precision.
Memory is what one step takes above what lies there before it.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch
from apart import Ask, baselines
from cases import BASELINE, BFLOAT16, FLOAT32, NETWORKS, Forms, Size, around, sampling, training
from timing import compare, environment, interleave, matmul_rate, operations, peak_bytes

from gebm.memory import keep_freed

SIZES = {"quick": Size(chains=16, batch=16, width=0.1), "full": Size()}
SECONDS = {"quick": 0.5, "full": 30.0}


def cases(size: Size) -> Iterator[tuple[str, Forms]]:
    """Every case of the suite."""
    for network in NETWORKS:
        yield from training(network, size)
        yield from sampling(network, size)
    yield from around(size)


def rows(case: str, forms: Forms, seconds: float, rates: dict[str, float], ask: Ask) -> Iterator[dict]:
    """What is measured of each form of a case."""
    if BASELINE in forms:
        forms[BASELINE] = lambda: ask(case, "step")
    times = interleave(forms, seconds, warm_up=1)
    for form, column in times.items():
        found = compare(times[BASELINE], column)._asdict() if BASELINE in forms else {"rounds": len(column)}
        ms = compare(column, column).ms
        if form == BASELINE:
            work, memory = ask(case, "operations"), ask(case, "peak_bytes")
        else:
            work, memory = operations(forms[form]), peak_bytes(forms[form])
        share = work / (ms / 1e3) / rates[form] if work else None
        yield {"case": case, "form": form, **found, "ms": ms, "gflop": work / 1e9, "share_of_matmul": share,
               "peak_bytes": memory}  # fmt: skip


def line(row: dict) -> str:
    """A row of the printed table."""
    ratio = f"{row['ratio']:.2f} ({row['low']:.2f}-{row['high']:.2f})" if "ratio" in row else "-"
    share = f"{row['share_of_matmul']:.0%}" if row["share_of_matmul"] else "-"
    memory = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:,.0f}"
    return (
        f"{row['case']:<40}{row['form']:<17}{row['ms']:>10.2f}{ratio:>20}{row['gflop']:>10.2f}{share:>9}{memory:>9}"
        f"{row['rounds']:>8}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=SIZES, default="quick")
    parser.add_argument("--only", nargs="+", default=[], metavar="TEXT", help="cases whose names hold one of these")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--seconds", type=float, help="a case; default: of the mode")
    parser.add_argument("--chains", type=int, help="default: of the mode")
    parser.add_argument("--batch", type=int, help="default: of the mode")
    parser.add_argument("--width", type=float, help="factor on every channel count; default: of the mode")
    parser.add_argument("--json", type=Path, help="also write settings, machine and rows here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    given = {key: value for key in ("chains", "batch", "width") if (value := getattr(args, key)) is not None}
    size = replace(SIZES[args.mode], device=args.device, **given)
    rates = {form: matmul_rate(torch.float32, args.device) for form in (BASELINE, FLOAT32)}
    rates[BFLOAT16] = matmul_rate(torch.bfloat16, args.device)
    where = environment() | {"gflop_s_float32": rates[FLOAT32] / 1e9, "gflop_s_bfloat16": rates[BFLOAT16] / 1e9}
    shown = {name: f"{value:.0f}" if isinstance(value, float) else value for name, value in where.items()}
    for facts in (shown, {"mode": args.mode, **asdict(size)}):
        print(", ".join(f"{name} {value}" for name, value in facts.items()))
    print(f"{'case':<40}{'form':<17}{'ms':>10}{'ratio (10-90 %)':>20}{'GFLOP':>10}{'matmul':>9}{'MB':>9}{'rounds':>8}")
    found: list[dict] = []
    keep_freed()  # as a command of gebm does
    seconds = args.seconds if args.seconds is not None else SECONDS[args.mode]
    with baselines(cases, size) as ask:
        for case, forms in cases(size):
            if args.only and not any(text in case for text in args.only):
                continue
            for row in rows(case, forms, seconds, rates, ask):
                found.append(row)
                print(line(row), flush=True)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        report = {"mode": args.mode, "size": asdict(size), "environment": where, "rows": found}
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
