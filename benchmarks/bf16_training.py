"""Training in bfloat16 beside float32: the digits demo over seeds, by KALE and by distance to held-out images.

python benchmarks/bf16_training.py runs/bf16 --seeds 5

Each run is `gebm demo --seed N --precision P` in a folder of its own; those that are finished are read. A change of
precision is to be judged by how far seeds differ among themselves, so the spread over seeds is printed beside it.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import fmean, stdev

PRECISIONS = ("32", "bf16")


def figures(out: Path, seed: int, precision: str, dataset: str) -> dict[str, float]:
    """KALE of the pair on held-out images, and the distance of its base and of its chains, from a demo."""
    run = out / f"{precision}-{seed}"
    if not (run / "summary.json").is_file():
        words = ["demo", "--seed", str(seed), "--precision", precision, "--dataset", dataset, "--device", "-2"]
        with open(out / f"{run.name}.log", "w") as log:
            subprocess.run(
                [sys.executable, "-m", "gebm", *words, "--log_dir", str(out), "--log_name", run.name],
                stdout=log, stderr=log, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
    found = json.loads((run / "summary.json").read_text())
    distance = next(found["metrics"][name] for name in found["metrics"] if name.startswith("FD"))
    kale = found["kale"]["test"]["fenchel"]
    return {"kale": kale, "base": distance["base"]["value"], "gebm": distance["gebm"]["value"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--dataset", default="digits")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[dict[str, float]]] = {precision: [] for precision in PRECISIONS}
    for seed in range(args.seeds):
        for precision in PRECISIONS:
            found[precision].append(figures(args.out, seed, precision, args.dataset))
            shown = "  ".join(f"{name} {value:.3f}" for name, value in found[precision][-1].items())
            print(f"seed {seed}  {precision:4}  {shown}", flush=True)
    print(f"\n{'':6}{'float32':>18}{'bfloat16':>18}{'difference':>20}")
    for name in found["32"][0]:
        columns = [[row[name] for row in found[precision]] for precision in PRECISIONS]
        both = "".join(f"{fmean(c):>10.3f} ({stdev(c):.3f})" for c in columns)
        gaps = [b - a for a, b in zip(*columns)]
        print(f"{name:6}{both}{fmean(gaps):>10.3f} +- {stdev(gaps) / len(gaps) ** 0.5:.3f}")
    print("in brackets: standard deviation over seeds; +-: standard error of the mean difference")


if __name__ == "__main__":
    main()
