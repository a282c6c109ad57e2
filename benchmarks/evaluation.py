"""What the metrics cost: all of them over the bare feature extractor, and the Fréchet solve for 2048 features.

python benchmarks/evaluation.py --images 5000 --threads 1 --seconds 60 --json evaluation.json
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from timing import environment, interleave

from gebm.metrics import Extractor, Moments, choose_features, extract, frechet_distance, make_reference, sample_metrics
from gebm.metrics.frechet import frechet_pseudo_values, whiten
from gebm.metrics.suite import ROWS

SHAPE = (3, 32, 32)


def overhead(extractor: Extractor, n: int, batch_size: int, seconds: float) -> dict[str, float]:
    """Seconds (medians) for n images: of the bare extractor, of ours from images to all metrics, and of each metric."""
    images, real = np.random.RandomState(0).randint(256, size=(2, n, *SHAPE), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        reference = make_reference(real, extractor, folder, "benchmark", batch_size)
    of_metrics: dict[str, list[float]] = {}

    def bare() -> None:
        with torch.inference_mode():
            for start in range(0, n, batch_size):
                extractor(torch.from_numpy(images[start : start + batch_size]))

    def ours() -> None:
        features = extract(images, extractor, batch_size)
        begin = time.perf_counter()
        for metric in sample_metrics(reference, extractor):
            metric.estimate(features)
            end = time.perf_counter()
            of_metrics.setdefault(metric.name, []).append(end - begin)
            begin = end

    times = interleave({"bare extractor": bare, "ours": ours}, seconds, warm_up=1)
    medians = {name: float(np.median(values)) for name, values in (times | of_metrics).items()}
    ratios = np.divide(times["ours"], times["bare extractor"])  # within a round, where both saw the same machine
    total = sum(medians[name] for name in of_metrics)
    return {**medians, "all metrics": total, "ours / bare": float(np.median(ratios)), "rounds": len(ratios)}


def solve(d: int) -> dict[str, float]:
    """CPU seconds of the Fréchet distance in d dimensions, the reference's root at hand."""
    x, y = (torch.randn(2 * d, d, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in (0, 1))
    reference, own, rows = Moments.of(x), Moments.of(y), x[:ROWS]
    kept: list[torch.Tensor] = []
    calls = {
        "root of the reference (kept)": lambda: reference.sqrt_cov,
        f"moments of {2 * d} samples": lambda: Moments.of(y),
        "distance": lambda: frechet_distance(own, reference),
        f"{len(rows)} whitened reference rows (kept)": lambda: kept.append(whiten(rows, reference)),
        f"moments, distance, interval of {2 * d} samples": lambda: frechet_pseudo_values(y, reference, rows, kept[0]),
    }
    seconds = {}
    for name, call in calls.items():
        begin = time.process_time()
        call()
        seconds[name] = time.process_time() - begin
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", default="cifar-resnet56", help="as --fid_features")
    parser.add_argument("--weights", help="their weights file")
    parser.add_argument("--data_path", default="data")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--dimensions", type=int, default=2048, help="of the solve")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    extractor, line = choose_features(args.features, "benchmark", SHAPE, args.weights, args.data_path)
    report = {
        "environment": environment(),
        "images": args.images,
        "evaluation_s": overhead(extractor, args.images, args.batch_size, args.seconds),
        "dimensions": args.dimensions,
        "solve_cpu_s": solve(args.dimensions),
    }
    print(line)
    for title in ("evaluation_s", "solve_cpu_s"):
        print(f"\n{title}")
        for name, value in report[title].items():
            print(f"  {name:<50}{value:>9.3f}")
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
