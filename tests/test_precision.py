"""What `--precision` and `--fast` come to."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from gebm import fast, graphs, memory, precision
from gebm.cli import main
from gebm.config import Config
from gebm.errors import InputError
from gebm.graphs import Graphed
from gebm.latent import GaussianPrior, LatentPosterior
from gebm.model import GEBM, Architecture
from gebm.networks import BASES, ENERGIES
from gebm.precision import Operations, for_chains, for_training
from gebm.samplers import MALA, KineticLangevin, Langevin, run

CPU = torch.device("cpu")


def posterior(width: float = 0.1, beta: float = 2.0) -> LatentPosterior:
    torch.manual_seed(0)
    base, energy = BASES["sngan"]((3, 16, 16), latent_dim=5, width=width), ENERGIES["sngan"]((3, 16, 16), width=width)
    return LatentPosterior(GaussianPrior(5), base, energy, beta)


@pytest.fixture
def able(monkeypatch):
    """A device that has bfloat16, and networks that are large enough."""
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    monkeypatch.setattr(precision, "PAYS", 0)


def test_operations_are_counted():
    conv = nn.Conv2d(3, 4, 3, bias=False)
    x = torch.randn(2, 3, 10, 10, requires_grad=True)
    with Operations() as counted:
        conv(x)
    assert counted.total == 2 * (2 * 4 * 8 * 8) * (3 * 3 * 3)
    with Operations() as counted:
        conv(x).sum().backward()
    assert counted.total == 3 * 2 * (2 * 4 * 8 * 8) * 27


def test_auto_takes_bfloat16_where_it_may(able, monkeypatch):
    target = posterior().frozen()
    assert for_chains("auto", Langevin(0.1), target)[0] == "bf16"
    assert "bfloat16" in for_chains("auto", KineticLangevin, target).reason
    assert for_chains("auto", MALA(0.1), target) == (32, "")
    assert for_chains(32, Langevin(0.1), target) == (32, "") and for_chains(64, Langevin(0.1), target) == (64, "")
    plain = LatentPosterior(GaussianPrior(5), lambda z: z, lambda x: x.square().sum(1)).frozen()
    assert for_chains("auto", Langevin(0.1), plain)[0] == 32
    with fast.plain():
        assert for_chains("auto", Langevin(0.1), target)[0] == 32
    monkeypatch.setattr(precision, "PAYS", 1e12)
    assert for_chains("auto", Langevin(0.1), target)[0] == 32
    monkeypatch.setattr(precision, "PAYS", 0)
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: False)
    assert for_chains("auto", Langevin(0.1), target)[0] == 32


def pair(dtype: torch.dtype = torch.float32, **built: object) -> GEBM:
    return GEBM.build(
        Architecture(**{**dict(base="dcgan", energy="dcgan", shape=(1, 8, 8), latent_dim=3), **built}), dtype=dtype
    )


def test_a_choice_takes_no_random_numbers(able):
    model, target = pair(), posterior().frozen()
    before = torch.get_rng_state()
    for asked in ("auto", "bf16", 32):
        for_training(asked, model), for_chains(asked, Langevin(0.1), target)
    assert torch.equal(torch.get_rng_state(), before)


def test_auto_trains_in_bfloat16_where_that_was_measured(able, monkeypatch):
    choice = for_training("auto", pair())
    assert choice.precision == "bf16" and choice.reason.startswith("precision: bfloat16 passes")
    others = {"dtype": torch.float64}, {"shape": (3,), "base": "maf", "energy": "mlp"}
    assert all(for_training("auto", pair(**other)) == (32, "") for other in others)
    assert for_training("auto", pair(), measured=False) == for_training(32, pair()) == (32, "")
    with fast.plain():
        assert for_training("auto", pair()) == (32, "")
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: False)
    assert for_training("auto", pair()) == (32, "")


def test_auto_falls_back_with_one_line(able, monkeypatch):
    target = posterior().frozen()

    def fails(dtype=None, rows=0):
        raise RuntimeError("no kernel for this\nand more")

    monkeypatch.setattr(target, "frozen", fails)
    choice = for_chains("auto", Langevin(0.1), target)
    assert choice.precision == 32 and "no kernel for this" in choice.reason and "\n" not in choice.reason


class Fourier(nn.Module):
    """An energy of waves as short as 2^-13, of which three digits leave nothing."""

    def __init__(self, waves: int = 14):
        super().__init__()
        self.register_buffer("frequencies", torch.pi * 2.0 ** torch.arange(waves))
        self.layers = nn.Sequential(nn.Conv2d(6 * waves, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU())

    def forward(self, x):
        waves = (x[:, :, None] * self.frequencies.to(x.dtype)[:, None, None]).flatten(1, 2)
        return self.layers(torch.cat([waves.sin(), waves.cos()], 1)).mean((1, 2, 3))


class Infinite(nn.Module):
    """An energy that is infinite in bfloat16 alone, where one and a thousandth is one."""

    def forward(self, x):
        return (1 + 1e-3 * x.flatten(1).mean(1) - 1).square().log()


def test_auto_takes_float32_where_bfloat16_is_another_gradient(able):
    target = posterior()
    target.energy = Fourier()
    choice = for_chains("auto", Langevin(0.1), target.frozen())
    assert choice.precision == 32 and re.search(
        r"too coarse .*gradients are off by [\d.]+ of their size, 0.4 is allowed", choice.reason
    )
    target.energy = Fourier(1)
    assert for_chains("auto", Langevin(0.1), target.frozen()).precision == "bf16"
    target.energy = Infinite()
    assert "too coarse" in for_chains("auto", Langevin(0.1), target.frozen()).reason
    target.energy = nn.Sequential(nn.Flatten(), nn.Linear(768, 1), nn.Hardtanh(), nn.Flatten(0))
    nn.init.constant_(target.energy[1].bias, 9.0)
    assert "are zero" in for_chains("auto", Langevin(0.1), target.frozen()).reason


def test_auto_trains_in_float32_where_bfloat16_is_another_gradient(able):
    model = pair()
    model.energy = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(1, 3, 1), Fourier())
    assert "too coarse" in for_training("auto", model).reason


def test_bfloat16_is_refused_where_it_would_be_wrong(able):
    target = posterior().frozen()
    with pytest.raises(InputError, match="float32 potentials"):
        for_chains("bf16", MALA(0.1), target)
    with pytest.raises(InputError, match="float64"):
        for_training("bf16", pair(torch.float64))
    with pytest.raises(InputError, match="images"):
        for_training("bf16", pair(shape=(3,), base="maf", energy="mlp"))
    assert for_training("bf16", pair()) == ("bf16", "")
    with pytest.raises(ValueError, match="exact only"):
        run(MALA(0.1), target.frozen(torch.bfloat16), target.start(2), 1)


def test_bfloat16_chains_move_alike_and_look_in_full():
    target = posterior(width=0.25, beta=50.0).frozen()
    half = target.frozen(torch.bfloat16)
    u = target.start(16, torch.Generator().manual_seed(0))
    (value, gradient), (low, low_gradient) = target(u), half(u)
    assert not torch.equal(value, low) and low.dtype == torch.float32
    assert (low_gradient - gradient).norm() < 0.2 * (gradient - u).norm()
    assert torch.equal(half.decode(u), target.decode(u)) and torch.equal(half.energies(u), target.energies(u))


@pytest.mark.parametrize("rows", [1, 3, 7, 100])
def test_slices_are_the_same_chains(rows):
    whole, sliced = posterior().frozen(), posterior().frozen(rows=rows)
    u = whole.start(7, torch.Generator().manual_seed(0))
    for one, other in ((whole(u), sliced(u)), (whole.decode_with_energies(u), sliced.decode_with_energies(u))):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole.potential(u), sliced.potential(u), rtol=1e-5, atol=1e-5)
    assert torch.equal(whole.decode(u[:0]), sliced.decode(u[:0]))


def test_rows_that_fit(monkeypatch):
    target = posterior().frozen()
    monkeypatch.setattr(memory, "free_bytes", lambda device: float("inf"))
    assert memory.rows_that_fit(target, 10_000) == 0
    sizes = {}
    for free in (1e6, 1e7):
        monkeypatch.setattr(memory, "free_bytes", lambda device, free=free: free)
        sizes[free] = memory.rows_that_fit(target, 10_000)
    assert sizes[1e6] > 0 and sizes[1e7] == pytest.approx(10 * sizes[1e6], rel=0.2)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1.0)
    assert memory.rows_that_fit(target, 10) == 1


def test_free_memory_is_what_the_system_and_the_container_leave(tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 3000 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert memory.free_bytes(CPU) == 3000 * 1024
    (tmp_path / "memory.current").write_text("100\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_bytes(CPU) == 3000 * 1024
    (tmp_path / "memory.max").write_text("1100\n")
    (tmp_path / "memory.stat").write_text("anon 10\ninactive_file 40\n")
    assert memory.free_bytes(CPU) == 1040  # what was read from files can be dropped
    for name, value in (("RANK", 1), ("LOCAL_RANK", 1), ("WORLD_SIZE", 4), ("LOCAL_WORLD_SIZE", 2)):
        monkeypatch.setenv(name, str(value))
    assert memory.free_bytes(CPU) == 520
    monkeypatch.delenv("RANK")
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "nothing")
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_bytes(CPU) == float("inf")


def test_a_capture_that_fails_is_gone_on_without(monkeypatch, caplog):
    def fails(self, x):
        raise RuntimeError("operation not permitted when stream is capturing\n...")

    monkeypatch.setattr(graphs.Graphed, "_capture", fails)
    graphed = Graphed(lambda x: (x + 1, 2 * x))
    with caplog.at_level("INFO", "gebm"):
        for _ in range(6):
            assert torch.equal(graphed(torch.ones(2))[0], torch.full((2,), 2.0))
    assert len(caplog.messages) == 1 and "not permitted" in caplog.messages[0]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


TRAIN = "train --dataset digits --g_model sngan --d_model sngan --width 0.05 --Z_dim 4 --b_size 8 --total_gen_iter 2 " \
    "--n_iter_d_init 3 --n_iter_d 2 --refine_iter 2 --disp_freq 1 --device -2 --log_name t".split()  # fmt: skip


def stats(run: str) -> list[dict]:
    return [json.loads(line) for line in Path(run, "stats.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("flags", [["--precision", "bf16"], ["--fast", "off"], ["--precision", "64"]])
def test_training_under_each_flag_is_near_to_the_default(here, flags):
    assert main([*TRAIN, "--log_name", "a"]) == 0
    assert main([*TRAIN, "--log_name", "b", *flags]) == 0
    ours, other = stats("runs/a")[-1], stats("runs/b")[-1]
    tolerance = {"bf16": 0.1, "off": 1e-3, "64": 1.0}[flags[1]]  # in float64 other latents are drawn
    assert other["energy_loss"] == pytest.approx(ours["energy_loss"], rel=tolerance)
    states = (Path(f"runs/{run}/checkpoints/refine-00000002/training.safetensors").read_bytes() for run in "ab")
    assert next(states) != next(states)  # the flag does something, if only in the last digits
    dtype = torch.float64 if flags[1] == "64" else torch.float32
    model = GEBM.load(sorted(Path("runs/b/checkpoints").iterdir())[-1], dtype=dtype)
    assert all(p.dtype == dtype for p in model.parameters())


def test_a_run_stores_the_precision_it_was_sampled_with(here, able, capsys):
    assert main(TRAIN) == 0
    flags = ["sample", "--g_path", "runs/t", "--n_samples", "4", "--num_sampler_steps", "2", "--device", "-2"]
    assert main([*flags, "--log_name", "s"]) == 0
    assert "bfloat16 gradients" in capsys.readouterr().out
    assert Config.load("runs/s/config.yaml").precision == "bf16"
    assert main([*flags, "--log_name", "x", "--latent_sampler", "mala"]) == 0
    assert Config.load("runs/x/config.yaml").precision == 32
    assert main([*flags, "--log_name", "y", "--latent_sampler", "mala", "--precision", "bf16"]) == 2
    assert "float32 potentials" in capsys.readouterr().err and not Path("runs/y").exists()


def test_a_run_goes_on_in_the_precision_it_began_with(here, able, capsys, monkeypatch):
    def losses(run: str) -> dict[str, float]:
        return {key: value for key, value in stats(run)[-1].items() if key in ("c", "energy_loss", "energy_real")}

    assert main(TRAIN) == 0
    assert capsys.readouterr().out.count("precision: bfloat16 passes") == 1
    whole = losses("runs/t")
    assert main([*TRAIN, "--log_name", "f", "--precision", "32"]) == 0
    assert len(whole) == 3 and losses("runs/f") != whole
    assert main([*TRAIN, "--log_name", "h", "--criterion", "hinge"]) == 0  # of which nothing was measured
    assert Config.load("runs/h/config.yaml").precision == 32
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: False)
    shutil.rmtree(sorted(Path("runs/t/checkpoints").iterdir())[-1])
    assert main(["train", "--resume", "runs/t"]) == 0
    assert Config.load("runs/t/config.yaml").precision == "bf16" and losses("runs/t") == whole


def test_both_precisions_may_not_contradict(here, capsys):
    assert main([*TRAIN, "--dtype", "64", "--precision", "bf16"]) == 2
    assert "contradicts" in capsys.readouterr().err and not Path("runs").exists()


def test_the_head_of_an_energy_stays_precise_under_autocast():
    model = GEBM.build(Architecture("sngan", "sngan", (3, 16, 16), latent_dim=4, width=0.1))
    x = torch.randn(3, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        e = model.energy(x)
    assert e.dtype == torch.float32 and e.requires_grad


FAULTS = """
import resource, sys, torch
from gebm.memory import keep_freed

taken = sys.argv[1] == "keep" and keep_freed()
make = lambda: torch.ones(12_000_000)  # 48 MB
for _ in range(20):
    make()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    make()
print(int(taken), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_freed_memory_is_kept_for_the_next_tensor():
    def pages(what: str) -> tuple[int, int]:
        done = subprocess.run([sys.executable, "-c", FAULTS, what], capture_output=True, text=True, check=True)
        taken, faults = map(int, done.stdout.split())
        return taken, faults

    (taken, kept), (_, returned) = pages("keep"), pages("return")
    if not taken:
        pytest.skip("another C library")
    assert kept < 100 and returned > 20 * kept  # new pages from the system


HELD = """
import torch
from pathlib import Path
from gebm.memory import free_bytes, keep_freed

def resident():
    return next(int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith("VmRSS")) / 1024

kept = keep_freed()
tensors = [torch.ones(12_000_000) for _ in range(5)]  # 240 MB
tensors.clear()
before = resident()
free_bytes(torch.device("cpu"))
print(int(kept), before - resident())
"""


def test_kept_memory_counts_as_free():
    done = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, check=True)
    kept, given_back = map(float, done.stdout.split())
    if not kept:
        pytest.skip("another C library")
    assert given_back > 200  # MB


@pytest.mark.parametrize(("flags", "kept"), [([], [True]), (["--fast", "off"], [])])
def test_commands_keep_freed_memory(monkeypatch, flags, kept):
    calls = []
    monkeypatch.setattr(memory, "keep_freed", lambda: calls.append(True))
    assert main(["data", "prepare", "--dataset", "digits", *flags]) == 0
    assert calls == kept
