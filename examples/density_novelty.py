"""Fit a density to a table, score new rows, find the odd ones. About a minute on one CPU thread.

    python examples/density_novelty.py --out novelty

The table is scikit-learn's breast-cancer set: ten measurements of cell nuclei for each of 569 samples. The model sees
rows of benign samples alone. New rows, benign ones that it has not seen and malignant ones, are scored by their
log-density: what is rare under the model is odd. Nobody told it what malignant is.

Everything is done by the command line, called from here; in a shell it is

    gebm train --dataset csv:novelty/benign.csv --log_dir novelty/runs --log_name benign --g_model maf --num_blocks 3
    gebm score novelty/new.csv --g_path novelty/runs/benign

The base is a flow, which has a density by itself; the energy on top corrects it. The scores hold both, `log_density`
and `log_density_base`, and `quantile`: (k + 1) / (n + 1), where k of n held-out benign rows are at most as likely. A
row below 0.05 is one that a twentieth of benign samples would be as odd as. A single Gaussian stands beside them, as
the simplest rival.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import roc_auc_score

from gebm.cli import main as gebm

HELD_OUT = 100  # benign rows that are scored
ODD = 0.05  # quantile


def write_csv(path: Path, columns: list[str], rows: np.ndarray) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows.tolist())


def run(*words: object) -> None:
    """A command, as in a shell; ends the script where the shell would see an error."""
    words = [str(word) for word in words]
    print(f"$ gebm {' '.join(words)}", flush=True)
    if code := gebm(words):
        raise SystemExit(code)


def gaussian_log_density(train: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Up to a constant."""
    centred = rows - train.mean(0)
    return -0.5 * (centred @ np.linalg.inv(np.cov(train.T)) * centred).sum(1)


def auc(scores: np.ndarray, malignant: np.ndarray) -> tuple[float, float]:
    """The chance that a malignant row is odder than a benign one, with its standard error over resampled rows."""
    rng = np.random.default_rng(0)
    draws = (rng.integers(len(scores), size=len(scores)) for _ in range(200))
    return roc_auc_score(malignant, -scores), float(np.std([roc_auc_score(malignant[i], -scores[i]) for i in draws]))


def picture(path: Path, scores: np.ndarray, malignant: np.ndarray, threshold: float) -> None:
    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    axis = figure.subplots()
    low, high = np.quantile(scores, 0.03), scores.max()
    bins = np.linspace(low, high, 50)
    for name, colour, rows in (("benign", "#0072b2", ~malignant), ("malignant", "#d55e00", malignant)):
        axis.hist(scores[rows].clip(low), bins, alpha=0.6, color=colour, label=f"{name}, {rows.sum()} rows")
    axis.axvline(threshold, color="#555555", linestyle="--", label=f"{ODD:.0%} quantile of held-out benign rows")
    axis.set(xlabel="log-density, nats (the lowest 3 % in the first bin)", ylabel="new rows")
    axis.legend(frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("novelty"), help="folder of all that is written [novelty]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="a look in seconds; the figures mean nothing")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    # Measurements are positive and skewed: their logarithms are nearer to what a flow begins with.
    data = load_breast_cancer()
    columns = [f"log {name.removeprefix('mean ')}" for name in data.feature_names[:10]]
    rows, malignant = np.log(data.data[:, :10] + 1e-3), data.target == 0
    rng = np.random.default_rng(args.seed)
    benign = rng.permutation(np.flatnonzero(~malignant))
    new = np.concatenate([benign[:HELD_OUT], np.flatnonzero(malignant)])
    write_csv(args.out / "benign.csv", columns, rows[benign[HELD_OUT:]])
    write_csv(args.out / "new.csv", columns, rows[new])

    # The default, a mogmaf, is the better density, but slow to sample from, as an energy on top asks for. The
    # log-partition is the same for all rows; it matters for likelihoods, not for which row is odd.
    few = ["--partition_samples", 200 if args.tiny else 4000]
    effort = ["--g_model", "maf", "--num_blocks", 3]
    effort += ["--ml_epochs", 2, "--refine_epochs", 1] if args.tiny else []
    name = f"benign-{args.seed}"
    place = ["--log_dir", args.out / "runs", "--log_name", name]
    run("train", "--dataset", f"csv:{args.out / 'benign.csv'}", *place, "--seed", args.seed, *few, *effort)
    run("score", args.out / "new.csv", "--g_path", args.out / "runs" / name, *few)

    with open(args.out / "new.scores.csv") as file:
        scored = {key: np.array(column, float) for key, *column in zip(*csv.reader(file))}
    of_new = malignant[new]
    gaussian = gaussian_log_density(rows[benign[HELD_OUT:]], rows[new])
    print(f"\n{of_new.sum()} malignant and {HELD_OUT} benign rows, none of them seen before")
    print("area under the curve, malignant against benign: 0.5 is chance, 1 is perfect")
    scores = {"GEBM": scored["log_density"], "base alone": scored["log_density_base"], "one Gaussian": gaussian}
    for name, values in scores.items():
        print("  {:14}{:.3f} ± {:.3f}".format(name, *auc(values, of_new)))
    odd = scored["quantile"] < ODD
    print(f"odder than {1 - ODD:.0%} of held-out benign rows: {odd[~of_new].mean():.0%} of the benign, ", end="")
    print(f"{odd[of_new].mean():.0%} of the malignant")
    print("the five oddest, by what differs most from benign rows, in standard deviations:")
    mean, spread = rows[benign].mean(0), rows[benign].std(0)
    for i in scored["log_density"].argsort()[:5]:
        z = (rows[new[i]] - mean) / spread
        most = ", ".join(f"{columns[j]} {z[j]:+.1f}" for j in abs(z).argsort()[:-4:-1])
        kind = "malignant" if of_new[i] else "benign"
        print(f"  row {i:3d} ({kind}), log-density {scored['log_density'][i]:.1f}: {most}")
    benign_scores = np.sort(scored["log_density"][~of_new])
    threshold = scored["log_density"][odd].max() if odd.any() else benign_scores[0]
    picture(args.out / "scores.png", scored["log_density"], of_new, float(threshold))
    print(f"picture in {args.out}/")


if __name__ == "__main__":
    main()
