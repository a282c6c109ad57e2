"""The benchmarks run, and compare like with like."""

import json
import math
import os
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch

from gebm.cli import main
from gebm.latent import GaussianPrior, LatentPosterior
from gebm.networks import BASES, ENERGIES
from gebm.objectives import Fenchel
from gebm.precision import Operations
from gebm.samplers import HMC, MALA, SAMPLERS, KineticLangevin, Langevin

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
DIM, BETA, GAMMA = 10, 1e4, 1e-4  # so large a beta because narrow networks have flat energies


@pytest.fixture(params=["sngan", "resnet-sn"])
def pair(request, monkeypatch):
    """The baseline and our frozen posterior of one pair whose norms have seen data."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    from reference_style import ReferenceStyle

    torch.manual_seed(0)
    base = BASES[request.param]((3, 32, 32), latent_dim=DIM, width=0.1)
    energy = ENERGIES[request.param]((3, 32, 32), width=0.1)
    with torch.no_grad():
        for _ in range(3):
            energy(base(2 * torch.randn(16, DIM)))
    posterior = LatentPosterior(GaussianPrior(DIM), base, energy, BETA).frozen()
    return ReferenceStyle(base, energy, BETA), posterior


def relative(error: torch.Tensor, value: torch.Tensor) -> float:
    return float(error.norm() / value.norm())


def test_baseline_computes_the_same_potential_and_gradient(pair):
    reference, posterior = pair
    z = torch.randn(8, DIM)
    potential, gradient = posterior(z)
    assert (gradient - z).norm() > gradient.norm() / 10  # the energy matters, not the prior alone
    assert relative(reference.potential(z).detach() - potential, potential) < 1e-4
    assert relative(reference.gradient(z) - gradient, gradient) < 1e-4


def test_baseline_does_the_work_it_stands_for(pair):
    reference, posterior = pair
    reference.langevin(torch.randn(2, DIM))
    weights = [p for network in (reference.base, reference.energy) for p in network.parameters()]
    assert all(p.grad is not None for p in weights)
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in reference.base.modules())
    assert not any(p.requires_grad for p in posterior.energy.parameters())


@pytest.mark.parametrize(
    "sampler, theirs, ours",
    [("langevin", (1, 1), (1, 1)), ("kinetic", (1, 1), (1, 1)), ("mala", (3, 1), (1, 1)), ("hmc", (4, 2), (2, 2))],
)
def test_forwards_and_backwards_of_a_step(pair, sampler, theirs, ours):
    reference, posterior = pair
    z = torch.randn(2, DIM)
    arguments = (z,) if sampler == "langevin" else (z, z)
    kernels = {"langevin": Langevin, "kinetic": KineticLangevin, "mala": MALA, "hmc": partial(HMC, leapfrog=2)}
    kernel = kernels[sampler](0.1)
    state = kernel.init(z, posterior)
    counts = [count_passes(network) for owner in (reference, posterior) for network in (owner.base, owner.energy)]
    getattr(reference, sampler)(*arguments)
    kernel.step(state, posterior, None)
    assert [(c["forward"], c["backward"]) for c in counts] == [theirs, theirs, ours, ours]


def count_passes(network: torch.nn.Module) -> Counter:
    """Counts from now on of the forward passes of the network, and of the backward passes through it."""
    counts = Counter()

    def on_forward(module, inputs, output):
        counts["forward"] += 1
        output.register_hook(lambda gradient: counts.update(["backward"]))

    network.register_forward_hook(on_forward)
    return counts


def test_baseline_takes_the_same_steps(pair):
    reference, posterior = pair
    z, v = torch.randn(8, DIM), torch.randn(8, DIM)

    overdamped, kinetic = Langevin.from_gamma(GAMMA), KineticLangevin.from_gamma(GAMMA)
    state = overdamped.init(z, posterior)
    torch.manual_seed(1)
    expected = reference.langevin(z, GAMMA)
    torch.manual_seed(1)
    moved, _ = overdamped.step(state, posterior, None)
    assert relative(moved.position - expected, expected - z) < 1e-4

    torch.manual_seed(1)
    expected, velocity = reference.kinetic(z, v, GAMMA)
    torch.manual_seed(1)
    moved, _ = kinetic.step(kinetic.init(z, posterior)._replace(velocity=v), posterior, None)
    assert relative(moved.position - expected, expected - z) < 1e-4
    assert relative(moved.velocity - velocity, velocity) < 1e-4


@pytest.mark.parametrize("sampler, kernel, gamma", [("mala", MALA, 0.2), ("hmc", HMC, 0.03)])
def test_baseline_takes_the_same_accepted_steps(pair, sampler, kernel, gamma):
    reference, posterior = pair
    leapfrog = {"leapfrog": 2} if sampler == "hmc" else {}
    kernel = kernel.from_gamma(gamma, **leapfrog)
    z = torch.randn(16, DIM)
    state = kernel.init(z, posterior)
    torch.manual_seed(1)
    expected, gradient = getattr(reference, sampler)(z, state.gradient, gamma, **leapfrog)
    torch.manual_seed(1)
    moved, info = kernel.step(state, posterior, None)
    assert 0 < info.accepted.sum() < len(z)
    assert torch.equal(moved.position != z, expected != z)
    assert relative(moved.position - expected, expected - z) < 1e-4
    assert relative(moved.gradient - gradient, gradient) < 1e-4


class Quadratic(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.square().sum(1) / 2


@pytest.mark.parametrize("sampler, gamma", [("mala", 0.3), ("hmc", 0.15)])
def test_accept_steps_of_the_baseline_keep_the_target(monkeypatch, sampler, gamma):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from reference_style import ReferenceStyle

    torch.manual_seed(0)
    reference = ReferenceStyle(torch.nn.Identity(), Quadratic(), beta=3.0)  # U = 2 |z|^2, variance 1/4
    z = torch.randn(4000, 4) / 2
    gradient = reference.gradient(z)
    acceptance = 0.0
    for _ in range(20):
        moved, gradient = getattr(reference, sampler)(z, gradient, gamma)
        acceptance += (moved != z).any(1).float().mean() / 20
        z = moved
    assert 0.2 < acceptance < 0.8
    error = 2**0.5 / z.numel() ** 0.5  # relative standard error of a Gaussian's variance
    assert abs(4 * z.square().mean() - 1) < 4 * error
    torch.testing.assert_close(gradient, reference.gradient(z))


def test_baseline_has_none_of_our_pairs_of_layers(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from reference_style import ReferenceStyle

    base, energy = BASES["resnet-sn"]((3, 16, 16), DIM, 0.1).eval(), ENERGIES["resnet-sn"]((3, 16, 16), 0.1).eval()
    target, z = LatentPosterior(GaussianPrior(DIM), base, energy), torch.randn(4, DIM)
    with Operations() as ours:
        target.frozen()(z)
    with Operations() as theirs:
        ReferenceStyle(base, energy).gradient(z)
    assert theirs.total > 1.9 * ours.total  # 1.5 are the parameter gradients


def script(name: str, *flags: str) -> str:
    """What a benchmark prints."""
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / name), *flags],
        env=os.environ | {"PYTHONPATH": str(BENCHMARKS.parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_suite_prints_a_table_and_writes_json(tmp_path):
    flags = "--width 0.05 --chains 2 --batch 2 --threads 1 --seconds 0 --only sngan batch".split()
    printed = script("bench.py", *flags, "--json", str(tmp_path / "out.json"))
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["environment"]["threads"] == 1 and report["environment"]["gflop_s_float32"] > 0
    rows = {(row["case"], row["form"]): row for row in report["rows"]}
    cases = {case for case, _ in rows}
    assert cases >= {"energy step, sngan", "base step, sngan", "batch of data", *(f"{s}, sngan" for s in SAMPLERS)}
    for case in ("energy step", "base step", "langevin", "lmc", "mala", "hmc"):
        theirs, ours = (rows[f"{case}, sngan", form] for form in ("reference style", "gebm float32"))
        assert theirs["ratio"] == 1 and ours["ratio"] > 0 and ours["ms"] > 0
        assert theirs["gflop"] > ours["gflop"] > 0
    assert all(0 < row["share_of_matmul"] < 3 for row in rows.values() if row["gflop"] > 0)
    assert all(row["peak_bytes"] is None or row["peak_bytes"] >= 0 for row in rows.values())
    assert all(str(part) in printed for key in rows for part in key)


def test_growth_is_measured_and_drawn(tmp_path):
    printed = script("growth.py", str(tmp_path), "--quick", "--threads", "1", "--seconds", "0")
    rows = json.loads((tmp_path / "growth.json").read_text())["rows"]
    grown = {row["grows"] for row in rows}
    assert grown == {"chains", "sampling steps", "batch", "image size", "images"} and all(g in printed for g in grown)
    assert (tmp_path / "growth.png").stat().st_size > 10_000
    assert not list(tmp_path.glob("tmp*"))


@pytest.fixture
def pair_of_trainers(monkeypatch):
    """The baseline's training and ours from the same weights, in evaluation mode: power iterations stand still."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    from reference_style import ReferenceTraining

    torch.manual_seed(0)
    base, energy = BASES["resnet-sn"]((3, 16, 16), DIM, 0.1).eval(), ENERGIES["resnet-sn"]((3, 16, 16), 0.1)
    for _ in range(3):
        energy(torch.randn(4, 3, 16, 16))
    data = torch.rand(8, 3, 16, 16) * 2 - 1
    reference = ReferenceTraining(base, energy.eval(), iter([data] * 9), DIM)
    reference.base.eval(), reference.energy.eval()
    return reference, base, energy, data


def test_baseline_trains_on_the_same_loss(pair_of_trainers):
    reference, base, energy, data = pair_of_trainers
    ours = Fenchel(energy, torch.nn.Parameter(torch.zeros(())))  # the form that the baseline has
    torch.manual_seed(1)
    theirs = reference.energy_loss(data)
    theirs.backward()
    torch.manual_seed(1)
    with torch.no_grad():
        fake = base(torch.randn(len(data), DIM))
    loss, _ = ours(data, fake)
    loss.backward()
    torch.testing.assert_close(loss, theirs, rtol=1e-5, atol=1e-6)
    gradients = [(p.grad, q.grad) for p, q in zip(energy.parameters(), reference.energy.parameters())]
    scale = max(float(q.norm()) for _, q in gradients)
    assert scale > 0 and all((p - q).norm() < 1e-4 * scale for p, q in gradients)


def test_baseline_moves_its_weights(pair_of_trainers):
    reference, *_ = pair_of_trainers
    for step, moved, still in (("energy_step", "energy", "base"), ("base_step", "base", "energy")):
        before = {n: [p.clone() for p in getattr(reference, n).parameters()] for n in (moved, still)}
        assert getattr(reference, step)().isfinite()
        after = {n: list(getattr(reference, n).parameters()) for n in (moved, still)}
        assert not all(map(torch.equal, before[moved], after[moved]))
        assert all(map(torch.equal, before[still], after[still]))


def test_comparison_pairs_rounds(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from timing import compare

    result = compare([2.0, 6.0, 9.0], [1.0, 2.0, 9.0])
    assert result.ratio == 2  # of 2, 3 and 1; the ratio of the medians is 3
    assert (result.ms, result.low, result.high, result.rounds) == (2000, 1, 3, 3)


class Counting(LatentPosterior):
    """Counts evaluations, with and without gradient."""

    evaluations = 0

    def potential(self, u: torch.Tensor) -> torch.Tensor:
        self.evaluations += 1
        return super().potential(u)


@pytest.fixture
def gaussian(monkeypatch):
    """E = |z|^2 / 2 in 2 dimensions at beta 3: the posterior is N(0, I / 4), log Z = -log 4, the mean of E 1/4."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    torch.manual_seed(0)
    return Counting(GaussianPrior(2), torch.nn.Identity(), Quadratic(), beta=3.0)


def test_truths_of_the_samplers_benchmark(gaussian):
    import samplers

    weighted = samplers.Pool(gaussian, 20_000).truth(gaussian, 4000, look=lambda u: u)
    population = samplers.population_truth(gaussian, 4000, 60, look=lambda u: u)
    for truth in (weighted, population):
        assert abs(truth.energy - 1 / 4) < 4 * truth.energy_se < 0.1
        assert abs(truth.partition.value + math.log(4)) < 4 * truth.partition.se < 0.3
        variance = truth.features.square().mean()
        assert abs(4 * variance - 1) < 0.15  # 5 standard errors of some 2,000 different draws


@pytest.mark.parametrize("name, tune", [("mala", True), ("mala", False), ("hmc", True), ("imh", False), ("smc", False)])
def test_samplers_benchmark_gives_all_the_same_number_of_evaluations(gaussian, name, tune):
    import samplers

    kernel = {"hmc": partial(HMC.from_gamma, leapfrog=5)}.get(name, samplers.SAMPLERS[name].from_gamma)(0.1)
    truth = samplers.Truth("", torch.randn(100, 2) / 2, 0.25, 0.0, samplers.LogPartition(0, 0, 1, 100), 0.0)
    benchmark = samplers.Benchmark(Points(), samplers.Reference.of(torch.randn(100, 2)), evaluations=60, chains=20)
    gaussian.decode_with_energies = lambda u: (u[:, :, None, None], gaussian.energy(u))
    row, draws = benchmark.row("", kernel, gaussian, truth, tune=tune)
    assert row.evaluations == 60 and row.warm_up == (20 if tune else 0) and row.note == ""
    assert gaussian.evaluations == 61  # the start's
    assert (draws.adapted is not None) == tune


class Points:
    """The images are points."""

    name = key = "points"

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1).double()


def test_samplers_benchmark_prints_a_table_and_writes_json(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.chdir(tmp_path)
    import samplers

    flags = "--device -2 --dataset digits --g_model dcgan --d_model dcgan --Z_dim 4 --width .1 --b_size 16"
    assert main(f"train {flags} --total_gen_iter 1 --n_iter_d 1 --n_iter_d_init 1 --log_name x".split()) == 0
    capsys.readouterr()
    flags = "--betas 2 --evaluations 30 --chains 20 --prior_draws 500 --features pixels --samplers mala dot"
    monkeypatch.setattr(sys, "argv", ["samplers.py", "runs/x", *flags.split(), "--markdown", "--json", "out.json"])
    samplers.main()
    rows = json.loads(Path("out.json").read_text())["rows"]
    of_samplers = [row for row in rows if row["evaluations"]]
    names = ["mala", "mala, its h, beta raised", "dot, gamma 0.1"]
    assert [(row["beta"], row["sampler"]) for row in of_samplers] == [(2, name) for name in names]
    assert len(rows) == len(of_samplers) + 2  # the truths
    assert len({row["base"] for row in of_samplers}) == 1  # all from the same latents
    assert {row["ess"] is None for row in of_samplers if row["sampler"].startswith("dot")} == {True}
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(lines) == len(rows) + 1 and len({line.count("|") for line in lines}) == 1
