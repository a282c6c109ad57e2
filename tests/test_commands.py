"""The commands, run in this process on the digits with tiny networks: what they write, repeat, find and refuse."""

import importlib
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from gebm.checkpoints import checkpoints
from gebm.cli import main
from gebm.cli import run as run_main
from gebm.commands.runs import open_run
from gebm.config import Config
from gebm.errors import InputError
from gebm.model import GEBM
from gebm.report import estimate

ROOT = Path(__file__).resolve().parent.parent
# 3 + 5 * 2 energy steps and 6 base steps, then 6 energy steps
TINY = (
    "--device -2 --dataset digits --g_model dcgan --d_model dcgan --Z_dim 4 --width .1 --b_size 16 --total_gen_iter 6 "
    "--n_iter_d 2 --n_iter_d_init 3 --refine_iter 6 --checkpoint_freq 2 --disp_freq 2 --lr 1e-3"
).split()
DRAW = "--device -2 --n_samples 6 --fid_samples 40 --num_sampler_steps 5 --lmc_gamma 1e-3 --temperature 1".split()
WEIGHTS = ("base.safetensors", "energy.safetensors", "training.safetensors")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    """Each test works in a folder of its own, without a GPU, a network, or the real data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GEBM_DATA", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    return tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A finished run of `TINY`; tests do not write into it."""
    folder = tmp_path_factory.mktemp("trained")
    assert main(["train", *TINY, "--log_dir", str(folder), "--log_name", "x"]) == 0
    return folder / "x"


def train(*flags: str, name: str = "x") -> Path:
    assert main(["train", *TINY, "--log_name", name, *flags]) == 0
    return Path("runs") / name


def newest(run: Path) -> Path:
    return checkpoints(run)[-1]


def assert_same_weights(a: Path, b: Path) -> None:
    for name in WEIGHTS:
        assert (newest(a) / name).read_bytes() == (newest(b) / name).read_bytes(), name


# Training


def test_train_writes_a_run(trained):
    files = {".lock", ".serial", "config.yaml", "checkpoints", "data.npz", "grids", "report.html", "stats.jsonl"}
    files |= {"tensorboard"}
    assert {p.name for p in trained.iterdir()} == files
    names = ["joint-00000004", "joint-00000006", "refine-00000004", "refine-00000006"]
    assert [p.name for p in checkpoints(trained)] == names
    every = [json.loads(line) for line in (trained / "stats.jsonl").read_text().splitlines()]
    rows = [row for row in every if "FD(pixels-8x8)_base" not in row]  # which is watched at checkpoints
    assert [(r["stage"], r["g_step"], r["refine_step"]) for r in rows] == [
        *(("joint", g, 0) for g in (2, 4, 6)), *(("refine", 6, r) for r in (2, 4, 6))
    ]  # fmt: skip
    assert all(np.isfinite(r["energy_loss"]) for r in rows)
    for path in checkpoints(trained):
        model = GEBM.load(path)
        assert model.log_partition.item() != 0
        assert model.sample(3, steps=2).shape == (3, 1, 8, 8)
        assert Config.load(path / "config.yaml") == Config.load(trained / "config.yaml")


@pytest.mark.parametrize("flags", ["", "--ema .9 --penalty_type gradient_l2", "--optimizer SGD --dtype 64 --seed 3"])
def test_a_run_is_repeated_from_its_configuration_alone(flags):
    first = train("--initialize_log_partition", *flags.split())
    assert main(["train", "--config", "runs/x/config.yaml", "--log_name", "y"]) == 0
    assert_same_weights(first, Path("runs/y"))


def test_other_seeds_give_other_weights(trained):
    other = train("--seed", "1")
    assert (newest(other) / "base.safetensors").read_bytes() != (newest(trained) / "base.safetensors").read_bytes()


@pytest.mark.parametrize("mode, flags", [("energy", "--g_path"), ("base", "--d_path")])
def test_training_one_of_the_two_takes_the_networks_of_the_other(trained, mode, flags):
    start = GEBM.load(newest(trained))
    argv = "--device -2 --b_size 16 --total_gen_iter 4 --refine_iter 4 --lr 1e-2 --initialize_log_partition".split()
    networks = "--d_model dcgan" if mode == "energy" else "--g_model dcgan"
    argv = ["train", "--train_mode", mode, flags, str(trained), *networks.split(), *argv, "--Z_dim", "4"]
    assert main([*argv, "--log_name", "one"]) == 0
    model = GEBM.load(newest(Path("runs/one")))
    kept, moved = ("base", "energy") if mode == "energy" else ("energy", "base")
    for name, value in getattr(start, kept).state_dict().items():  # batch statistics too
        assert torch.equal(value, getattr(model, kept).state_dict()[name]), name
    pairs = zip(getattr(start, moved).parameters(), getattr(model, moved).parameters())
    assert any(not torch.equal(a, b) for a, b in pairs)
    assert model.log_partition.item() != start.log_partition.item()  # c is trained in every mode
    # Once more from the file alone, and once more from the checkpoint, when the weights it started from are gone.
    assert main(["train", "--config", "runs/one/config.yaml", "--log_name", "two"]) == 0
    assert_same_weights(Path("runs/one"), Path("runs/two"))
    shutil.move("runs/two", "runs/three")
    config = Config.load("runs/three/config.yaml")
    text = config.to_yaml().replace(str(trained), "gone")
    Path("runs/three/config.yaml").write_text(text)
    assert main(["train", "--resume", "runs/three"]) == 0
    assert_same_weights(Path("runs/one"), Path("runs/three"))


def test_energy_mode_takes_the_architecture_of_the_base_it_is_given(trained):
    argv = ["train", "--device", "-2", "--train_mode", "energy", "--g_path", str(trained), "--refine_iter", "2"]
    assert main([*argv, "--b_size", "8", "--width", ".1", "--log_name", "x"]) == 0
    config = Config.load("runs/x/config.yaml")
    assert (config.g_model, config.Z_dim, config.width) == ("dcgan", 4, 0.1)


def test_energy_mode_takes_the_trained_base_that_a_factory_returns(here):
    (here / "own_base.py").write_text(
        "import torch\n"
        "from gebm.networks import DCGANBase\n"
        "def trained(image_shape, latent_dim, width):\n"
        "    with torch.random.fork_rng():\n"
        "        torch.manual_seed(7)\n"
        "        return DCGANBase(image_shape, latent_dim, width)\n"
    )
    run = train("--train_mode", "energy", "--g_model", "own_base:trained")
    assert [path.name for path in checkpoints(run)] == ["refine-00000004", "refine-00000006"]
    base = GEBM.load(newest(run), allow=["own_base:trained"]).base.state_dict()
    expected = importlib.import_module("own_base").trained((1, 8, 8), 4, 0.1).state_dict()
    assert base.keys() == expected.keys() and all(torch.equal(base[k], expected[k]) for k in base)
    assert sample("--g_path", str(run))["base_path"] == str(newest(run))
    assert main(["evaluate", str(run), "--device", "-2"]) == 0


def cut(run: Path, last: str, name: str) -> Path:
    """A copy of a run as it was when its newest checkpoint was `last`, what else it wrote included."""
    copy = Path("runs") / name
    shutil.copytree(run, copy)
    for path in checkpoints(copy):
        if path.name > last:
            shutil.rmtree(path)
    text = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(text.replace(f"log_name: {run.name}", f"log_name: {name}"))
    return copy


@pytest.mark.parametrize("last", ["joint-00000004", "joint-00000006", "refine-00000004", "refine-00000006", ""])
@pytest.mark.parametrize("how", ["auto", "folder"])
def test_resume(trained, last, how, capsys):
    run = cut(trained, last, "z")
    assert main(["train", "--resume", "auto" if how == "auto" else str(run), *(TINY if how == "auto" else [])]) == 0
    assert f"resuming runs/z from {last or 'the start'}" in capsys.readouterr().out
    assert_same_weights(run, trained)
    rows = map(json.loads, (run / "stats.jsonl").read_text().splitlines())
    steps = [(r["g_step"], r["e_step"]) for r in rows if "kale" in r]  # the others are of what is watched
    assert steps == [(2, 5), (4, 9), (6, 13), (6, 15), (6, 17), (6, 19)]


def test_resume_auto_takes_the_newest_run_that_agrees_with_the_flags_given(trained, capsys):
    cut(trained, "joint-00000004", "mine")
    other = train("--b_size", "8", name="other")
    Path("runs/.mine.01234567.tmp").mkdir()  # what a kill leaves
    shutil.copy("runs/mine/config.yaml", "runs/.mine.01234567.tmp")
    before = (newest(other) / "training.safetensors").read_bytes()
    assert main(["train", "--resume", "auto", *TINY]) == 0
    assert "resuming runs/mine" in capsys.readouterr().out
    assert_same_weights(Path("runs/mine"), trained)
    assert (newest(other) / "training.safetensors").read_bytes() == before
    assert main(["train", "--resume", "auto"]) == 0
    assert "resuming runs/mine" in capsys.readouterr().out
    assert main(["train", "--resume", "auto", "--log_name", "other"]) == 0
    assert "resuming runs/other" in capsys.readouterr().out
    assert main(["train", "--resume", "auto", *TINY, "--seed", "6"]) == 0
    assert "starting a new one" in capsys.readouterr().out
    assert len(list(Path("runs").glob("digits-train-*"))) == 1


def test_flags_given_with_resume_win(trained):
    run = cut(trained, "refine-00000004", "z")
    assert main(["train", "--resume", str(run), "--refine_iter", "8", "--lr", "0"]) == 0
    assert newest(run).name == "refine-00000008"
    still, then = GEBM.load(run / "checkpoints/refine-00000006"), GEBM.load(newest(run))
    for part in ("base", "energy"):  # at learning rate zero; c follows its batches whatever that is
        pairs = zip(getattr(still, part).parameters(), getattr(then, part).parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_eval_fid_while_training():
    run = train("--eval_fid", "--fid_features", "pixels", "--fid_samples", "40", "--freq_fid", "3")
    rows = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    assert [r["e_step"] for r in rows if "FD(pixels)_base" in r] == [7, 13]  # the refinement leaves the base as it is
    plain = train(name="plain")
    assert_same_weights(run, plain)  # looking changes nothing


def test_eval_kale_while_training():
    run = train("--eval_kale", "--freq_kale", "3")
    rows = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    rows = [r for r in rows if "kale_train_minus_test" in r]
    assert [r["e_step"] for r in rows] == [7, 13, 16, 19]
    for row in rows:
        assert row["kale_fenchel_test"] <= row["kale_donsker_varadhan_test"]
        gap = row["kale_donsker_varadhan_train"] - row["kale_donsker_varadhan_test"]
        assert row["kale_train_minus_test"] == pytest.approx(gap)
    assert_same_weights(run, train(name="plain"))  # looking changes nothing


def test_a_folder_is_one_run_s(trained):
    """Of two runs started at once under one name, the second to make the folder is refused."""
    config, architecture = Config(log_name="x"), GEBM.load(newest(trained)).architecture
    arguments = Path("runs/x"), config, torch.device("cpu"), architecture
    open_run(*arguments)
    with pytest.raises(InputError, match="this run exists"):
        open_run(*arguments)


def test_an_energy_trained_without_the_floor_keeps_going_without():
    first = train("--no_trunc")
    train("--d_path", str(first), name="on")
    assert Config.load("runs/on/config.yaml").no_trunc
    train("--d_path", str(first), "--no_trunc", "false", name="floored")
    assert not Config.load("runs/floored/config.yaml").no_trunc


def test_float64_weights_are_loaded_as_they_are():
    run = train("--dtype", "64")
    pair = ["--g_path", str(run), "--d_path", str(run)]
    train("--dtype", "64", *pair, "--total_gen_iter", "0", "--refine_iter", "0", name="y")
    a, b = (GEBM.load(newest(r), dtype=torch.float64).state_dict() for r in (run, Path("runs/y")))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_finished_run_stays_as_it_is(trained, capsys):
    run = cut(trained, "refine-00000006", "x")
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    assert main(["train", "--resume", str(run), "--lr", "0.5"]) == 0
    assert "is finished: nothing was changed" in capsys.readouterr().out
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_an_energy_on_its_floor_everywhere_stops_the_run(here, capsys):
    (here / "flat_energy.py").write_text(
        "from torch import nn\n"
        "class Energy(nn.Module):\n"
        "    def __init__(self, shape, width, trunc):\n"
        "        super().__init__()\n"
        "        self.scale = nn.Linear(1, 1)\n"
        "    def forward(self, x):\n"
        "        return (x.flatten(1).mean(1) * self.scale.bias - 100).clamp(min=-10)\n"
    )
    flags = ["--d_model", "flat_energy:Energy", "--penalty_type", "none", "--log_name", "flat"]
    assert main(["train", *TINY, *flags]) == 1
    assert "every energy lies on the floor -10" in capsys.readouterr().err


def test_log_in_file(capsys):
    run = train("--log_in_file")
    train(name="y")
    text = (run / "log.txt").read_text()
    assert "training on digits" in text and "runs/y" not in text


def test_save_nothing():
    run = train("--save_nothing")
    assert not checkpoints(run) and (run / "stats.jsonl").stat().st_size


ENERGY_THAT_FAILS = """
import torch
from gebm.networks import DCGANEnergy

class Energy(DCGANEnergy):
    def __init__(self, image_shape, **options):
        super().__init__(image_shape, **options)
        self.calls = 0

    def forward(self, x):
        self.calls += self.training
        return super().forward(x) * (float("nan") if self.calls > 12 else 1)
"""


def test_divergence_is_one_line_with_the_last_good_checkpoint(here, monkeypatch, capsys):
    (here / "failing_energy.py").write_text(ENERGY_THAT_FAILS)
    flags = ["--d_model", "failing_energy:Energy", "--penalty_type", "none", "--log_name", "nan", "--disp_freq", "50"]
    assert main(["train", *TINY, *flags]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    # 12 calls: 3 + 1, 2 + 1, 2 + 1, 2; the 13th is that of base step 4.
    good = Path("runs/nan/checkpoints/joint-00000002")
    assert error.startswith("gebm: error: loss not finite at base step 4: ") and error.endswith(str(good))
    assert all(p.isfinite().all() for p in GEBM.load(good, allow=["failing_energy:Energy"]).parameters())
    assert newest(Path("runs/nan")) == good


# Sampling


def sample(*flags: str, name: str = "s") -> dict:
    assert main(["sample", "--dataset", "digits", *DRAW, "--log_name", name, *flags]) == 0
    return json.loads((Path("runs") / name / "summary.json").read_text())


def arrays(name: str = "s") -> dict[str, np.ndarray]:
    with np.load(Path("runs") / name / "samples.npz") as archive:
        return {key: archive[key] for key in archive.files}


def test_sample_finds_the_newest_pair_of_its_dataset(trained, monkeypatch):
    for name in ("old", "new"):
        train("--seed", "7" if name == "new" else "0", name=name)
    image_folder(12)
    train("--dataset", "folder:images", "--image_size", "8", name="another")
    summary = sample()
    assert summary["base_path"] == summary["energy_path"] == "runs/new/checkpoints/refine-00000006"
    assert sample("--g_path", "runs/old", name="t")["base_path"] == "runs/old/checkpoints/refine-00000006"


def test_without_a_dataset_the_newest_run_is_meant_whatever_it_was_trained_on(trained, capsys):
    shutil.copytree(trained, "runs/digits")
    np.savez("mine.npz", train=np.zeros((20, 1, 8, 8), np.uint8), test=np.zeros((9, 1, 8, 8), np.uint8))
    short = ["--total_gen_iter", "1", "--refine_iter", "0", "--no_watch"]
    assert main(["train", *TINY, *short, "--dataset", "npz:mine.npz", "--log_name", "mine"]) == 0
    flags = [word for word in DRAW if word not in ("--dataset", "digits")]
    assert main(["sample", *flags, "--log_name", "s"]) == 0
    assert json.loads(Path("runs/s/summary.json").read_text())["base_path"] == str(newest(Path("runs/mine")))
    assert main(["evaluate", "--device", "-2", "--json", "found.json"]) == 0
    assert json.loads(Path("found.json").read_text()).keys() == {"runs/mine"}
    assert sample(name="t")["base_path"] == str(newest(Path("runs/digits")))
    shutil.rmtree("runs")
    assert main(["sample", *flags]) == 2
    assert "no trained pair under runs/: train one" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["run", "checkpoint", "file"])
def test_sample_from_explicit_paths(trained, kind):
    checkpoint = trained / "checkpoints" / "joint-00000004"
    paths = {
        "run": (trained, trained),
        "checkpoint": (checkpoint, newest(trained)),
        "file": (checkpoint / "base.safetensors", newest(trained) / "energy.safetensors"),
    }[kind]
    summary = sample("--g_path", str(paths[0]), "--d_path", str(paths[1]))
    used = (newest(trained), newest(trained)) if kind == "run" else paths
    assert (summary["base_path"], summary["energy_path"]) == (str(used[0]), str(used[1]))


def test_samples_and_summary(trained):
    pair = ["--g_path", str(trained), "--d_path", str(trained)]
    summary = sample(*pair, "--eval_fid", "--fid_features", "pixels", "--sample_b_size", "25")
    data = arrays()
    assert data["samples"].shape == data["base"].shape == (6, 1, 8, 8)
    assert data["samples"].dtype == data["base"].dtype == np.uint8
    assert data["latents"].shape == (6, 4) and data["energies"].shape == (6,)
    folder = Path("runs/s")
    images = sorted((folder / "png").iterdir())
    assert [p.name for p in images] == [f"{i:05d}.png" for i in range(6)]
    assert np.array_equal(np.asarray(Image.open(images[3])), data["samples"][3, 0])
    assert Image.open(folder / "chains.gif").n_frames > 2
    for name in ("base.png", "samples.png", "step-00000.png", "summary.txt", "config.yaml"):
        assert (folder / name).stat().st_size
    found = summary["metrics"]["FD(pixels)"]
    expected = {"features": "pixels", "n_real": 400, "n_fake": 40, "sampler": "langevin", "beta": 1.0, "steps": 5}
    assert summary.items() >= expected.items()
    low, high = found["gain_ci"]
    assert low <= found["gain"] <= high
    assert found["gain"] == pytest.approx(found["base"]["value"] - found["gebm"]["value"])
    assert "KD(pixels)" in summary["metrics"] and "precision(pixels)" in summary["left_out"]
    assert list(summary["curve"]) == [str(step) for step in range(6)]
    assert summary["curve"]["0"] == found["base"] and summary["curve"]["5"] == found["gebm"]
    text = (folder / "summary.txt").read_text()
    assert "FD(pixels)" in text and "40 samples, 400 images of digits test" in text
    # The energies are those of the images' latents.
    model = GEBM.load(newest(trained)).eval()
    energies = model.posterior().energies(torch.from_numpy(data["latents"]))
    np.testing.assert_allclose(data["energies"], energies.numpy(), atol=1e-5)


def test_same_seed_same_samples_and_a_repeat_from_the_configuration_alone(trained):
    pair = ["--g_path", str(trained), "--d_path", str(trained)]
    sample(*pair)
    sample(*pair, name="again")
    sample(*pair, "--seed", "1", name="other")
    train(name="newer")  # not what the file means
    assert main(["sample", "--config", "runs/s/config.yaml", "--log_name", "file"]) == 0
    first = arrays()
    for name in ("again", "file"):
        for key, value in arrays(name).items():
            assert np.array_equal(value, first[key]), (name, key)
    assert not np.array_equal(arrays("other")["samples"], first["samples"])


@pytest.mark.parametrize(
    "flags", ["--latent_sampler lmc --lmc_kappa 1", "--num_sampler_steps 0", "--no_trunc", "--dtype 64"]
)
def test_sampling_flags(trained, flags):
    summary = sample("--g_path", str(trained), "--d_path", str(trained), *flags.split())
    moved = not np.array_equal(arrays()["samples"], arrays()["base"])
    assert moved == (summary["steps"] > 0)
    assert summary["sampler"] == ("lmc" if "lmc" in flags else "langevin")
    assert Path("runs/s/chains.gif").exists() == (summary["steps"] > 0)
    assert ("chains.gif" in Path("runs/s/summary.txt").read_text()) == (summary["steps"] > 0)


def test_uniform_prior():
    train("--latent_noise", "uniform")
    sample()
    assert Config.load("runs/s/config.yaml").latent_noise == "uniform"


# Evaluation


def test_evaluate_a_run_and_its_samples(trained, capsys):
    run = cut(trained, "refine-00000006", "x")
    sample("--eval_fid", "--fid_features", "pixels", "--n_samples", "40")
    assert main(["evaluate", "runs/x", "--device", "-2"]) == 0
    summary = json.loads((run / "evaluation.json").read_text())
    assert summary["kale"]["train"]["n_real"] == 1397 and summary["kale"]["test"]["n_real"] == 400
    assert summary["kale"]["test"]["c"] == pytest.approx(GEBM.load(newest(run)).log_partition.item())
    flags = ["--device", "-2", "--fid_features", "pixels"]
    assert main(["evaluate", "runs/s", *flags]) == 0
    of_samples = json.loads(Path("runs/s/evaluation.json").read_text())
    sampled = json.loads(Path("runs/s/summary.json").read_text())
    for part in ("base", "gebm"):
        assert of_samples["samples"]["metrics"]["FD(pixels)"][part] == sampled["metrics"]["FD(pixels)"][part]
    np.savez("bare.npz", samples=arrays()["samples"])
    capsys.readouterr()
    assert main(["evaluate", "bare.npz", *flags]) == 0
    assert estimate(sampled["metrics"]["FD(pixels)"]["gebm"]) in capsys.readouterr().out
    assert main(["evaluate", "--eval_fid", "--fid_samples", "40", *flags]) == 0  # the newest pair
    out = capsys.readouterr().out
    assert "FD(pixels)" in out and "KALE train minus test" in out
    for more in (["--eval_fid", "--fid_samples", "40"], []):  # the second measures less, and loses nothing
        assert main(["evaluate", "runs/x", *more, *flags]) == 0
        assert "FD(pixels)" in json.loads((run / "evaluation.json").read_text())["metrics"]
    (run / "evaluation.json").write_text("{")
    assert main(["evaluate", "runs/x", *flags]) == 0
    assert json.loads((run / "evaluation.json").read_text())["kale"] == summary["kale"]


# The demo


def demo(*flags: str) -> int:
    argv = ["demo", *TINY, "--n_samples", "40", "--fid_samples", "40", "--fid_features", "pixels", *flags]
    return main([*argv, "--total_gen_iter", "2", "--refine_iter", "2"])


def test_demo(capsys):
    assert demo() == 0
    summary = json.loads(Path("runs/demo/summary.json").read_text())
    assert summary.keys() >= set("features metrics curve n_real n_fake sampler beta steps seed kale kale_gap".split())
    config = Config.load("runs/demo/config.yaml")
    assert (config.Z_dim, config.width, config.total_gen_iter, config.refine_iter) == (4, 0.1, 2, 2)
    out = capsys.readouterr().out
    for words in ("FD(pixels)", "base", "GEBM", "gain", "KALE test", "log-partition", "runs/demo"):
        assert words in out
    Path("runs/demo/left").touch()
    assert demo() == 0
    assert not Path("runs/demo/left").exists()


# Bad input


class Code:
    def __reduce__(self):
        return (pytest.fail, ("the pickle's code ran",))


def image_folder(count: int) -> Path:
    rng = np.random.default_rng(0)
    Path("images").mkdir()
    for i in range(count):
        Image.fromarray(rng.integers(256, size=(10, 10), dtype=np.uint8)).save(f"images/{i}.png")
    return Path("images")


def corrupt_image():
    image_folder(12)
    file = Path("images/3.png")
    file.write_bytes(file.read_bytes()[:60])


def truncated_cifar():
    folder = Path("data/cifar-10-batches-bin")
    folder.mkdir(parents=True)
    for name in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"):
        (folder / f"{name}.bin").write_bytes(bytes(100))


def broken(trained: Path, how: str) -> None:
    """Folder `bad` with a run whose weights, and what a resume reads besides, are damaged in all its checkpoints."""
    run = cut(trained, "refine-00000006", "bad")
    for file in run.glob("checkpoints/*/*.safetensors"):
        content = {"truncated": file.read_bytes()[:200], "pickle": pickle.dumps(Code())}[how]
        file.write_bytes(content)
    shutil.move(run, "bad")
    shutil.rmtree("runs")


def no_run(name: str):
    Path("runs", name).mkdir(parents=True)


def write(name: str, text: str):
    Path(name).write_text(text)


def whole(trained: Path):
    cut(trained, "z", "x")


def bare(trained: Path):
    cut(trained, "z", "x")
    Path("runs/x/config.yaml").unlink()


def samples_only(trained: Path):
    sample("--g_path", str(trained), "--d_path", str(trained))


def make_npz(content: bytes | None) -> None:
    if content is None:
        np.savez("bad.npz", samples=np.array([{"a": 1}], dtype=object))
    else:
        Path("bad.npz").write_bytes(content)


def make_npy() -> None:
    with open("bad.npz", "wb") as file:
        np.save(file, np.zeros(3))


BAD = {  # name -> (arguments, what the line says, what is prepared)
    "unknown flag": ("train --datasett digits", "did you mean --dataset", None),
    "unknown key": ("train --config c.yaml", "did you mean n_iter_d", lambda t: write("c.yaml", "n_iterd: 2")),
    "wrong type": ("train --b_size many", "b_size many", None),
    "impossible choice": ("train --g_model dcgann", "did you mean dcgan", None),
    "out of bounds": ("train --ema 1", "ema 1", None),
    "image size": ("train --image_size 33", "built-in networks take 8, 16, 28, 32, 64", None),
    "unknown command": ("trane", "did you mean train", None),
    "missing CIFAR": ("train --dataset cifar10", "no CIFAR-10 there", None),
    "truncated CIFAR": ("train --dataset cifar10", "30,730,000", lambda t: truncated_cifar()),
    "empty folder": ("train --dataset folder:images", "images", lambda t: image_folder(0)),
    "missing folder": ("train --dataset folder:images", "images", None),
    "corrupt image": ("train --dataset folder:images --image_size 8", "3.png", lambda t: corrupt_image()),
    "no such GPU": ("train --device 3", "this machine has no GPU", None),
    "no GPU at all": ("sample --device -1 {pair}", "this machine has no GPU", None),
    "log_dir is a file": ("train {tiny} --log_dir log", "cannot be written", lambda t: Path("log").touch()),
    "log_dir below a file": ("sample {pair} --log_dir log/x", "cannot be written", lambda t: Path("log").touch()),
    "existing run": ("train {tiny} --log_name x", "--resume", lambda t: no_run("x")),
    "existing samples": ("sample {pair} --log_name x", "exists", lambda t: no_run("x")),
    "energy without base": ("train --train_mode energy", "--g_path", None),
    "base without energy": ("train --train_mode base", "--d_path", None),
    "no refinement in energy mode": ("train {tiny} --train_mode energy {g} --refine_iter 0", "--refine_iter", None),
    "nothing trained": ("sample --dataset digits", "no trained pair of --dataset digits", None),
    "resume nothing": ("train --resume runs/none", "no training run there", None),
    "resume an empty folder": ("train --resume runs/empty", "no training run there", lambda t: no_run("empty")),
    "resume samples": ("train --resume runs/s", "no training run there", samples_only),
    "resume truncated": ("train --resume bad", "safetensors is damaged", lambda t: broken(t, "truncated")),
    "resume a pickle": ("train --resume bad", "safetensors is damaged", lambda t: broken(t, "pickle")),
    "resume another architecture": ("train --resume runs/x --Z_dim 5", "--Z_dim 5: ", whole),
    "resume without configuration": ("train --resume runs/x", "its config.yaml is missing; copy", bare),
    "resume another ema": ("train --resume runs/x --ema .9", "--ema 0.9", whole),
    "resume another mode": ("train --resume runs/x --train_mode base --d_path {g_run}", "--train_mode base", whole),
    "more base steps after the base is frozen": ("train --resume runs/x --total_gen_iter 9", "was made with 6", whole),
    "a path for a name": ("train {tiny} --log_name a/b", "--log_name a/b", None),
    "a hidden name": ("train {tiny} --log_name .a", "--log_name .a", None),
    "graphs without a GPU": ("train {tiny} --fast graphs", "CUDA graphs take a GPU", None),
    "own factory of another signature": ("train {tiny} --g_model os:getcwd", "must be callable as factory(", None),
    "demo resumed": ("demo --resume auto", "--resume", None),
    "demo without files": ("demo --save_nothing", "--save_nothing", None),
    "resume another optimizer": ("train --resume runs/x --optimizer SGD", "another --optimizer", whole),
    "start from truncated": ("train --g_path bad", "none of its", lambda t: broken(t, "truncated")),
    "sample truncated": ("sample --g_path bad --d_path bad", "none of its", lambda t: broken(t, "truncated")),
    "sample a pickle": ("sample --g_path bad --d_path bad", "none of its", lambda t: broken(t, "pickle")),
    "sample the wrong half": ("sample --d_path {g_file} {g}", "does not fit", None),
    "base of another size": ("train {g} --dataset digits --image_size 16", "shape (1, 8, 8), not (1, 16, 16)", None),
    "contradicting Z_dim": ("sample {pair} --Z_dim 100", "was trained with 4", None),
    "contradicting d_model": ("sample {pair} --d_model sngan", "was trained with dcgan", None),
    "features without weights": ("sample {pair} --eval_fid --fid_features cifar-resnet56", "weights", None),
    "features without weights, training": ("train {tiny} --eval_fid --fid_features cifar-resnet56", "weights", None),
    "sample at another size": ("sample {pair} --eval_fid --image_size 16", "--image_size", None),
    "evaluate at another size": ("evaluate {g_run} --dataset digits --image_size 16", "--image_size", None),
    "evaluate one and another": ("evaluate {g_run} --g_path runs/x", "--g_path runs/x: ", None),
    "evaluate nothing": ("evaluate nothing", "no such run", None),
    "evaluate an empty folder": ("evaluate runs/empty", "neither a run nor", lambda t: no_run("empty")),
    "evaluate a pickle": ("evaluate bad.npz", "not a readable", lambda t: make_npz(pickle.dumps(Code()))),
    "evaluate a pickle in an npz": ("evaluate bad.npz", "cannot be read", lambda t: make_npz(None)),
    "evaluate half an npz": ("evaluate bad.npz", "not a readable", lambda t: make_npz(b"PK\x03\x04" + bytes(50))),
    "evaluate an npy": ("evaluate bad.npz", "not a readable", lambda t: make_npy()),
    "no module": ("train --d_model nowhere:Energy", "cannot be imported", None),
    "demo over another folder": ("demo --log_name x", "not an earlier demo", lambda t: no_run("x")),
}


def tree() -> dict[str, bytes | None]:
    return {str(p): p.read_bytes() if p.is_file() else None for p in sorted(Path(".").rglob("*"))}


def test_samples_are_not_told_of_as_another_sets(trained, capsys):
    np.savez("other.npz", train=np.zeros((30, 3, 32, 32), np.uint8), test=np.zeros((9, 3, 32, 32), np.uint8))
    assert main(["sample", "--g_path", str(trained), "--dataset", "npz:other.npz", "--device", "-2"]) == 2
    assert "the model's are (1, 8, 8)" in capsys.readouterr().err and not Path("runs").exists()


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_writes_nothing(name, trained, capsys, monkeypatch):
    import pooch

    def no_network(*args, **kwargs):
        raise OSError("no network here")

    monkeypatch.setattr(pooch, "retrieve", no_network)
    text, says, prepare = BAD[name]
    if prepare:
        prepare(trained)
    values = {
        "tiny": " ".join(TINY), "g": f"--g_path {trained}", "g_run": trained,
        "pair": f"--g_path {trained} --d_path {trained}", "g_file": newest(trained) / "base.safetensors",
    }  # fmt: skip
    before, trained_before = tree(), sorted(trained.rglob("*"))
    capsys.readouterr()
    assert main(text.format(**values).split()) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("gebm: error: ") and says in lines[0]
    assert tree() == before
    assert sorted(trained.rglob("*")) == trained_before


def test_the_default_device_falls_back_to_the_cpu_in_one_line(capsys):
    argv = [word for word in TINY if word not in ("--device", "-2")]
    assert main(["train", *argv, "--total_gen_iter", "1", "--log_name", "x"]) == 0
    assert capsys.readouterr().out.count("the CPU (no GPU here") == 1
    assert yaml.safe_load(Path("runs/x/config.yaml").read_text())["device"] == -2


# The documented commands


@pytest.mark.slow
def test_documented_commands_on_cifar10(shared_data, monkeypatch):
    subprocess.run([sys.executable, shared_data / "unpack_cifar10.py", "data"], check=True, capture_output=True)
    small = "--dataset=cifar10 --device=-2"
    training = f"--config={ROOT}/configs/training.yaml {small} --width 0.1 --b_size=4 --log_name=t"
    few = "--total_gen_iter 2 --n_iter_d_init 2 --n_iter_d 1 --refine_iter 1"
    assert run_main([*training.split(), *few.split()]) == 0
    sampling = f"--config={ROOT}/configs/sampling.yaml {small} --latent_sampler=langevin --lmc_gamma=0.0001"
    tiny = "--num_sampler_steps 2 --fid_samples 20 --n_samples 10 --log_name s"
    assert run_main([*sampling.split(), *tiny.split()]) == 0
    summary = json.loads(Path("runs/s/summary.json").read_text())
    assert summary["base_path"] == "runs/t/checkpoints/refine-00000001"
    assert summary.items() >= {"features": "pixels-8x8", "n_real": 10_000, "n_fake": 20, "steps": 2}.items()
    assert arrays()["samples"].shape == (10, 3, 32, 32)
