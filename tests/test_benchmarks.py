"""The benchmarks run, and compare like with like."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gebm.latent import GaussianPrior, LatentPosterior
from gebm.networks import BASES, ENERGIES
from gebm.samplers import KineticLangevin, Langevin

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


def test_script_prints_a_table_and_writes_json(tmp_path):
    flags = f"--width 0.05 --chains 2 --threads 1 --seconds 0 --json {tmp_path / 'out.json'}"
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "langevin_step.py"), *flags.split()],
        env=os.environ | {"PYTHONPATH": str(BENCHMARKS.parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["environment"]["threads"] == 1
    forms = {(row["step"], row["form"]) for row in report["rows"]}
    assert forms == {(s, f) for s in ("langevin", "lmc") for f in ("reference style", "gebm float32", "gebm bfloat16")}
    assert all(row["ms"] > 0 and row["ratio"] > 0 for row in report["rows"])
    assert all(str(part) in done.stdout for form in forms for part in form)


def test_comparison_pairs_rounds(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from timing import compare

    result = compare([2.0, 6.0, 9.0], [1.0, 2.0, 9.0])
    assert result.ratio == 2  # of 2, 3 and 1; the ratio of the medians is 3
    assert (result.ms, result.low, result.high, result.rounds) == (2000, 1, 3, 3)
