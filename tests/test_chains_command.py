"""What the flags of latent chains do to `gebm sample` and `gebm evaluate`, on tiny networks."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from gebm.cli import main
from gebm.metrics.temperature import BetaFit
from gebm.samplers import SAMPLERS

TINY = (
    "--device -2 --dataset digits --g_model dcgan --d_model dcgan --Z_dim 4 --width .1 --b_size 16 --total_gen_iter 6 "
    "--n_iter_d 2 --n_iter_d_init 3 --refine_iter 40 --lr 1e-2 --lr_generator 1e-2"
).split()
TRUE_BETA = 2.0


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> str:
    """A finished run, which had images set aside."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trained")
    assert main(["train", *TINY, "--refine_kale", "100", "--log_dir", str(folder), "--log_name", "x"]) == 0
    return str(folder / "x")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


def sample(trained: str, flags: str, name: str = "s") -> dict:
    """Sample with these flags over small ones; the summary."""
    small = "--device -2 --n_samples 100 --num_sampler_steps 40 --lmc_gamma 0.1 --temperature 1 --step_decay_every 0"
    chosen = dict(zip(*[iter(small.split())] * 2))
    given = flags.split()
    kept = [word for flag, value in chosen.items() if flag not in given for word in (flag, value)]
    assert main(["sample", "--g_path", trained, "--d_path", trained, "--log_name", name, *kept, *given]) == 0
    return json.loads(Path(f"runs/{name}/summary.json").read_text())


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler(trained, name):
    summary = sample(trained, f"--latent_sampler {name}" + " --num_leapfrog 3" * (name == "hmc"))
    kernel = SAMPLERS[name]
    assert summary["sampler"] == name and 0 < summary["acceptance"] <= 1
    assert (summary["acceptance"] < 1) == kernel.exact
    assert (summary["log_partition"] is not None) == (name == "smc")
    if name == "smc":
        assert summary["log_partition"].keys() == {"value", "se", "relative_ess", "n", "pareto_k", "warning"}
    d = summary["diagnostics"]
    assert d["chains"] == 100 and d["draws"] == 20
    assert all((d[key] is None) != kernel.moves for key in ("rhat_energy", "ess_energy", "left_start"))
    with np.load("runs/s/trace.npz") as trace:
        assert trace["energy"].shape == (100, 40) and trace["projection"].shape == (100, 40, 4)
    text = Path("runs/s/summary.txt").read_text()
    assert ("split R-hat" in text) == kernel.moves and ("log-partition" in text) == (name == "smc")
    goes_down = name in ("zero_temperature_langevin", "dot")
    assert ("does not sample: these are refined samples, not posterior draws" in text) == goes_down


def test_chains_that_have_not_mixed_are_called_refined(trained):
    assert "too short" in sample(trained, "--num_sampler_steps 5", "short")["warning"]
    stuck = sample(trained, "--lmc_gamma 1e-4", "stuck")
    assert "have not mixed (R-hat" in stuck["warning"] and not stuck["mixed"]
    assert stuck["warning"] in Path("runs/stuck/summary.txt").read_text()
    free = sample(trained, "--latent_sampler imh --num_sampler_steps 200", "free")
    assert free["mixed"] and free["warning"] == "" and free["diagnostics"]["left_start"] > 0.8


def test_adapt(trained):
    summary = sample(trained, "--latent_sampler mala --adapt --precondition --adapt_steps 150 --lmc_gamma 50")
    assert summary["gamma"] is None and summary["step_size"] < 10 and summary["adapted"]["steps"] == 150
    assert len(summary["adapted"]["scale"]) == 4 and abs(summary["acceptance"] - 0.574) < 0.12
    assert summary["diagnostics"]["draws"] == 40  # all of them: the warm-up came before
    text = Path("runs/s/summary.txt").read_text()
    assert "(tuned)" in text and "150 steps that tuned the step size and scales" in text


def test_temperature_auto_finds_the_beta_that_made_the_images(trained):
    sample(trained, f"--temperature {TRUE_BETA} --latent_sampler imh --num_sampler_steps 100 --n_samples 1000", "made")
    images = "--dataset folder:runs/made/png --image_size 8"
    summary = sample(trained, f"{images} --temperature auto --latent_sampler imh")
    fit = summary["temperature_fit"]
    assert fit["held_out"] and "which the energy was not trained on" in fit["images"]  # but on the digits
    assert 700 < fit["n_real"] < 950 and 0 < fit["se"] < TRUE_BETA / 3  # of 1,000, less the test images
    assert abs(fit["beta"] - TRUE_BETA) < 3 * fit["se"]
    assert fit["beta"] == summary["beta"] == yaml.safe_load(Path("runs/s/config.yaml").read_text())["temperature"]
    argv = f"evaluate {trained} {images} --device -2 --eval_fid --fid_features pixels --fid_samples 40"
    assert main([*argv.split(), "--temperature", "auto", "--num_sampler_steps", "10"]) == 0
    again = json.loads((Path(trained) / "evaluation.json").read_text())
    assert again["temperature_fit"] == fit and again["diagnostics"]["draws"] == 5
    assert "too short" in again["warning"]


def test_temperature_auto_of_a_flat_energy(trained, monkeypatch):
    """Its beta is 0 with no finite error, which JSON cannot hold as a number."""
    flat = BetaFit(0.0, float("inf"), 0.0, 1.0, [(0.0, 0.0, 0.5, 1.0)], 10, 10)
    monkeypatch.setattr("gebm.commands.chains.fit_beta", lambda *_, **__: flat)
    summary = sample(trained, "--temperature auto --dataset digits")
    assert summary["beta"] == 0 and summary["temperature_fit"]["se"] is None


def test_temperature_auto_where_no_beta_is_best(trained, capsys):
    argv = "sample --dataset digits --device -2 --log_name s --temperature auto".split()
    assert main([*argv, "--g_path", trained, "--d_path", trained]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "likelihood still rises" in error and not Path("runs").exists()


def test_evaluate_partition(trained):
    argv = f"evaluate {trained} --device -2 --eval_partition --sample_b_size 400"
    assert main(argv.split()) == 0
    found = json.loads((Path(trained) / "evaluation.json").read_text())
    monte_carlo = found["kale"]["test"]["log_partition"], found["kale"]["test"]["log_partition_se"]
    for name in ("smc", "ais"):
        estimate = found["partition"][name]
        assert estimate["n"] == 400 and 0 < estimate["se"] < 0.2
        assert 0 < estimate["relative_ess"] <= 1 and estimate["pareto_k"] < 1 and isinstance(estimate["warning"], str)
        assert abs(estimate["value"] - monte_carlo[0]) < 4 * np.hypot(estimate["se"], monte_carlo[1])


def test_thinned_draws_are_written(trained):
    sample(trained, "--thin 10 --sample_b_size 20")
    positions, energies = (np.load(f"runs/s/draws/{name}.npy", mmap_mode="r") for name in ("position", "energy"))
    assert positions.shape == (100, 4, 4) and energies.shape == (100, 4)
    with np.load("runs/s/samples.npz") as archive:
        assert np.array_equal(positions[:, -1], archive["latents"])
        np.testing.assert_allclose(energies[:, -1], archive["energies"], atol=1e-4)


def test_ramped_beta(trained):
    """Half-way up the stairs to a high beta the energy has fallen less than without them."""
    flags = "--latent_sampler mala --temperature 50 --num_sampler_steps 20 --lmc_gamma 0.02"
    driven = sample(trained, flags)
    ramped = sample(trained, f"{flags} --beta_ramp 20", "r")
    assert ramped["beta_ramp"] == 20 and ramped["energy_start"] == driven["energy_start"]
    start, early = driven["energy_start"], str(4)
    fall, slow = (start - s["energy_trace"][early] for s in (driven, ramped))
    assert fall > 0 and slow < fall / 2


@pytest.mark.parametrize(
    "flags, parts",
    [
        ("--adapt", ["--adapt: langevin", "mala, hmc, mh"]),
        ("--adapt --latent_sampler lmc", ["--adapt: lmc"]),
        ("--precondition --latent_sampler mala", ["--precondition", "give --adapt too"]),
        ("--precondition --adapt --latent_sampler mh", ["--precondition: mh", "mala and hmc"]),
        ("--beta_ramp 10 --latent_sampler smc", ["--beta_ramp: smc"]),
        ("--lmc_kappa 10", ["--lmc_kappa 10.0: langevin has no use", "--latent_sampler lmc"]),
        ("--num_leapfrog 3 --latent_sampler mala", ["--num_leapfrog 3: mala", "--latent_sampler hmc"]),
        ("--beta_ramp 10 --latent_sampler sir", ["--beta_ramp: sir"]),
        ("--thin 50 --num_sampler_steps 40", ["--thin 50", "40 steps"]),
        ("--beta_ramp 50 --num_sampler_steps 40", ["--beta_ramp 50", "40 steps"]),
        ("--beta_ramp 50 --latent_sampler mala --adapt", ["--beta_ramp", "warm-up"]),
        ("--latent_sampler smc --n_samples 20", ["smc: 20 chains", "100 or more"]),
        ("--latent_sampler smc --n_samples 1001", ["population of 1,"]),
        ("--thin 1 --n_samples 1000000 --num_sampler_steps 10000000", ["--thin 1", "GB are free"]),
        ("--lmc_splitting OABAO", ["--lmc_splitting OABAO", "ABOBA, BAOAB"]),
    ],
)
def test_refused_before_any_work(trained, capsys, flags, parts):
    argv = ["sample", "--device", "-2", "--g_path", trained, "--d_path", trained, "--log_name", "s"]
    assert main([*argv, *flags.split()]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and all(part in error for part in parts), error
    assert not Path("runs").exists()


def test_smc_without_enough_steps_stops(trained, capsys):
    argv = "--latent_sampler smc --temperature 500 --num_sampler_steps 2 --log_name s --device -2".split()
    assert main(["sample", "--g_path", trained, "--d_path", trained, *argv]) == 1
    assert "of the way from the prior to the target; give more steps" in capsys.readouterr().err
    assert not Path("runs/s").exists()  # its name is free for the next try


def test_what_cannot_be_told_is_not_told(trained):
    """One chain, and a constant energy: beta 0."""
    one = sample(trained, "--n_samples 1 --latent_sampler imh", "one")
    assert one["warning"].startswith("one chain cannot be compared") and one["diagnostics"]["rhat_energy"] is None
    free = sample(trained, "--temperature 0 --latent_sampler imh", "free")
    assert free["mixed"] and not free["warning"] and "energy constant" in Path("runs/free/summary.txt").read_text()
    assert "h " not in Path("runs/free/summary.txt").read_text().split("sampler", 1)[1].splitlines()[0]
    smc = sample(trained, "--latent_sampler smc", "smc")
    assert smc["gamma"] is None and smc["step_size"] != 0.05
    assert "(tuned)" in Path("runs/smc/summary.txt").read_text()


def test_the_table_names_every_setting(trained):
    def row(flags: str, name: str) -> str:
        sample(trained, flags, name)
        return next(line for line in Path(f"runs/{name}/summary.txt").read_text().splitlines() if "beta 1" in line)

    assert "friction 2 BAOAB, 40 steps" in row("--latent_sampler lmc --lmc_kappa 2 --lmc_splitting BAOAB", "a")
    hmc = row("--latent_sampler hmc --num_leapfrog 3 --beta_ramp 20 --step_decay_every 15", "b")
    assert "3 leapfrog steps, 40 steps, beta raised over the first 20, gamma x0.1 every 15" in hmc
    assert "these are samples of the base" in (
        sample(trained, "--num_sampler_steps 0", "c") and Path("runs/c/summary.txt").read_text()
    )
