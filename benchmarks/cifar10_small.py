"""What the energy adds to a base on CIFAR-10: distance over sampling steps, by sampler, beta and step size.

python benchmarks/cifar10_small.py runs/cifar10-small --markdown

Every setting runs once, with few chains, against the training images; for each sampler and beta the gamma and the
number of steps of the least distance are taken, and measured with many other chains against the test images.
"""

import argparse
import json
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
from timing import environment

from gebm.commands.chains import draw_chains, sampler_summary
from gebm.commands.datasets import dataset_for
from gebm.commands.metrics import compare, distances_along, features_of, observed_features, reference_of
from gebm.commands.pairs import load_pair
from gebm.commands.sample import spaced
from gebm.commands.setup import choose_device
from gebm.config import Config
from gebm.data import ImageData
from gebm.latent import LatentPosterior
from gebm.metrics import Extractor, Moments, Reference, frechet_distance
from gebm.report import estimate, gain, sampler_row
from gebm.samplers import NonFiniteError
from gebm.sampling import Observer


class Setting(NamedTuple):
    """A sampler's setting and its distance to the training images, base and after `steps`."""

    sampler: str
    beta: float
    gamma: float
    steps: int
    base: float
    distance: float


class Study:
    """Chains of one pair, looked at through one extractor."""

    def __init__(self, config: Config, posterior: LatentPosterior, extractor: Extractor):
        self.config, self.posterior, self.extractor = config, posterior, extractor
        self.device = posterior.device

    def run(
        self, sampler: str, beta: float, gamma: float, steps: int, n: int, seed: int, places: int
    ) -> tuple[dict, dict]:
        """Features of n chains at so many places along the way, and the summary of the sampler."""
        config = replace(
            self.config, latent_sampler=sampler, temperature=beta, lmc_gamma=gamma, num_sampler_steps=steps,
            step_decay_every=0, seed=seed,
        )  # fmt: skip
        observer = Observer(observed_features(self.extractor, config, self.device), spaced(steps, places))
        draws = draw_chains(config, self.posterior.at(beta), n, observer)
        return observer.features(), sampler_summary(config, draws)

    def best(
        self, sampler: str, beta: float, gammas: list[float], steps: int, n: int, train: Moments
    ) -> Setting | None:
        """Of all gammas and lengths, those of the least distance to the training images."""
        found = []
        for gamma in gammas:
            try:
                features, _ = self.run(sampler, beta, gamma, steps, n, seed=0, places=10)
            except NonFiniteError:
                continue
            curve = {step: frechet_distance(Moments.of(x), train) for step, x in features.items()}
            least = min(curve, key=curve.get)
            found.append(Setting(sampler, beta, gamma, least, curve[0], curve[least]))
            shown = "  ".join(f"{step}: {value:.1f}" for step, value in curve.items())
            print(f"{sampler} beta {beta:g} gamma {gamma:g}  {shown}", file=sys.stderr, flush=True)
        return min(found, key=lambda setting: setting.distance, default=None)

    def measure(self, setting: Setting, n: int, test: Reference, split: str) -> dict:
        """All metrics of n other chains on the test images; a setting without steps is the base's."""
        features, sampler = self.run(setting.sampler, setting.beta, setting.gamma, setting.steps, n, seed=1, places=2)
        found = compare(features, test, self.extractor, split, self.device)
        return {**sampler, **found, "curve": distances_along(features, test, self.extractor, self.device)}


def row(setting: Setting, found: dict) -> str:
    """A line of the markdown table."""
    metric = found["metrics"][found["distance"]]
    cells = [
        setting.sampler, f"{setting.beta:g}", f"{setting.gamma:g}", str(setting.steps), estimate(metric["base"]),
        estimate(metric["gebm"]), gain(metric), f"{metric['gebm']['value'] / metric['base']['value']:.2f}",
        f"{found['importance_relative_ess']:.3f}",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a training run, or one of its checkpoints")
    parser.add_argument("--samplers", nargs="+", default=["langevin", "lmc", "mala"])
    parser.add_argument("--betas", type=float, nargs="+", default=[1.0, 10.0, 100.0])
    parser.add_argument("--gammas", type=float, nargs="+", default=[0.01, 0.1])
    parser.add_argument("--lmc_kappa", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--try_chains", type=int, default=1000, help="on which a setting is chosen")
    parser.add_argument("--chains", type=int, default=10_000, help="on which it is measured")
    parser.add_argument("--data_path", default="")
    parser.add_argument("--fid_weights", default="")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write all figures here")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    config = Config.load(args.run / "config.yaml")
    config = replace(
        config, g_path=str(args.run), d_path=str(args.run), lmc_kappa=args.lmc_kappa, sample_b_size=500, eval_fid=True,
        data_path=args.data_path or config.data_path, fid_weights=args.fid_weights or config.fid_weights,
    )  # fmt: skip
    device = choose_device(config, frozenset())
    model, base, energy = load_pair(config, frozenset())
    data: ImageData = dataset_for(model.to(device), config)
    extractor, test = features_of(config, data, device)
    train = reference_of(config, data, "train", extractor, device).moments
    study = Study(config, model.posterior().frozen(), extractor)
    where = environment()
    print(f"{energy}, {args.chains} chains, {test.moments.n} images of {data.name} test, {extractor.name}")
    print(", ".join(f"{name} {value}" for name, value in where.items()), end="\n\n")
    print("| sampler | beta | gamma | steps | base | GEBM | gain | ratio | relative ESS |")
    print("|---" * 9 + "|", flush=True)
    records = []
    for sampler, beta in product(args.samplers, args.betas):
        setting = study.best(sampler, beta, args.gammas, args.steps, args.try_chains, train)
        if setting is None or not setting.steps:
            nothing = "| | 0 | no setting came nearer to the training images | | | | |"
            print(f"| {sampler} | {beta:g} {nothing}", flush=True)
            continue
        found = study.measure(setting, args.chains, test, f"{data.name} test")
        print(row(setting, found), flush=True)
        records.append({"setting": setting._asdict(), "sampler": sampler_row(found)[1], **found})
        if args.json:
            args.json.write_text(json.dumps({"environment": where, "energy": str(energy), "rows": records}) + "\n")


if __name__ == "__main__":
    main()
