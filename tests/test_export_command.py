"""`gebm export`: what it writes of a run, and that the folder does what the run does."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from gebm.checkpoints import newest_checkpoint
from gebm.cli import main
from gebm.model import GEBM

IMAGES = (
    "train --device -2 --dataset digits --g_model dcgan --d_model dcgan --Z_dim 4 --width .1 --b_size 16 "
    "--total_gen_iter 4 --n_iter_d 1 --n_iter_d_init 1 --refine_iter 2 --disp_freq 2 --lr 1e-3 --log_name run"
).split()
ROWS = (
    "train --device -2 --dataset csv:t.csv --g_model nvp --ml_epochs 2 --refine_epochs 2 --width .1 --num_blocks 2 "
    "--disp_freq 5 --partition_samples 2000 --log_name run --dtype 64"
).split()
DRAW = ["--device", "-2", "--n_samples", "6", "--num_sampler_steps", "4"]


def table(file: str, seed: int) -> None:
    rows = np.random.default_rng(seed).standard_normal((300, 3)) * [2, 0.5, 1] + [10, -3, 0]
    np.savetxt(file, rows, delimiter=",", header="a,b|c,<d>", comments="")


def trained(tmp_path_factory, flags: list[str]) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(torch.cuda, "device_count", lambda: 0)
        table("t.csv", 0)
        assert main(flags) == 0
        assert main(["export", "runs/run", "out"]) == 0
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return trained(tmp_path_factory, IMAGES)


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    return trained(tmp_path_factory, ROWS)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gebm.commands.sample.write_report", lambda run, allow: run)  # takes longer than all the rest
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


def arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(f"runs/{name}/samples.npz") as archive:
        return dict(archive)


def config(folder: Path) -> dict:
    return json.loads((folder / "out" / "config.json").read_text())


@pytest.mark.parametrize("kind", ["images", "rows"])
def test_an_export_is_sampled_as_its_run_is(kind, request):
    folder = request.getfixturevalue(kind)
    for name, source in (("of-run", folder / "runs" / "run"), ("of-export", folder / "out")):
        dtype = ["--dtype", "64"] if kind == "rows" else []
        assert main(["sample", "--g_path", str(source), "--log_name", name, *DRAW, *dtype]) == 0
    ours, theirs = arrays("of-export"), arrays("of-run")
    for key, value in theirs.items():
        np.testing.assert_allclose(ours[key], value, rtol=0, atol=1e-6)


def test_an_export_scores_as_its_run_does(rows):
    table("new.csv", 1)
    found = {}
    for name, source in (("run", rows / "runs" / "run"), ("export", rows / "out")):
        flags = ["--g_path", str(source), "--output", f"{name}.csv", "--device", "-2", "--dtype", "64"]
        assert main(["score", "new.csv", *flags]) == 0
        with open(f"{name}.csv") as stream:
            found[name] = np.array([list(map(float, row)) for row in list(csv.reader(stream))[1:]])
    np.testing.assert_allclose(found["export"], found["run"], rtol=1e-6)
    assert 0.2 < found["run"][:, 3].mean() < 0.8


def test_quantiles_follow_another_log_partition(rows):
    """The stored log-densities of the validation rows are shifted with those of the file."""
    table("new.csv", 1)
    shutil.copytree(rows / "out", "out")
    found = {}
    for shift in (0, 1.5):
        stored = config(Path())
        stored["log_partition"]["value"] += shift
        Path("out/config.json").write_text(json.dumps(stored))
        assert main(["score", "new.csv", "--g_path", "out", "--device", "-2", "--dtype", "64"]) == 0
        with open("new.scores.csv") as stream:
            found[shift] = [(float(row["log_density"]), row["quantile"]) for row in csv.DictReader(stream)]
    (before, quantiles), (after, again) = (zip(*scores) for scores in found.values())
    np.testing.assert_allclose(np.array(after) + 1.5, before, atol=1e-4)
    assert again == quantiles and len(set(quantiles)) > 5


@pytest.mark.parametrize("kind", ["images", "rows"])
def test_an_export_is_evaluated_on_its_own_data(kind, request, monkeypatch):
    folder = request.getfixturevalue(kind)
    monkeypatch.chdir(folder)
    flags = ["--device", "-2", "--partition_samples", "2000", "--json", "e.json", "--dtype", "64"]
    assert main(["evaluate", "runs/run", "out", *flags]) == 0
    of_run, of_export = json.loads(Path("e.json").read_text()).values()
    key = "nll" if kind == "rows" else "kale"
    assert of_export[key] == of_run[key]


def test_no_rows_and_no_folders_of_this_machine_are_exported(rows):
    found = config(rows)
    assert found["data"]["dataset"] == "csv:t.csv"
    assert found["table"].keys() == {
        "name", "columns", "mean", "whitening", "shift", "protocol", "seed", "key", "width", "valid_log_density",
        "named", "dropped", "dropped_offset", "dropped_weights", "dropped_tolerance", "dropped_unit",
    }  # fmt: skip
    text = "".join((rows / "out" / name).read_text() for name in ("config.json", "README.md"))
    assert str(rows) not in text and "log_dir" not in text


def test_the_card_gives_the_runs_own_figures(rows, images):
    likelihood = json.loads((rows / "runs" / "run" / "likelihood.json").read_text())
    card = (rows / "out" / "README.md").read_text()
    assert "{value:.4f} +- {se:.4f}".format(**likelihood["nll"]["test"]["gebm"]) in card
    assert config(rows)["log_partition"] == likelihood["log_partition"]
    card = (images / "out" / "README.md").read_text()
    assert "| base steps | 4 |" in card and "| of which refinement | 2 |" in card and "## Figures" not in card
    last = json.loads((images / "runs" / "run" / "stats.jsonl").read_text().splitlines()[-1])
    assert config(images)["training"]["energy_steps"] == last["e_step"]


def test_a_sampling_run_is_exported_with_its_setting(images):
    flags = ["--latent_sampler", "mala", "--adapt", "--adapt_steps", "3", "--temperature", "2", "--no_trunc"]
    flags += ["--log_name", "s"]
    assert main(["sample", "--g_path", str(images / "runs" / "run"), *DRAW, *flags]) == 0
    assert main(["export", "runs/s"]) == 0
    found = json.loads(Path("runs/s-export/config.json").read_text())
    assert found["sampler"] == {
        "latent_sampler": "mala", "temperature": 2.0, "num_sampler_steps": 4, "adapt": True, "adapt_steps": 3,
    }  # fmt: skip
    assert not found["architecture"]["trunc"]
    assert GEBM.from_pretrained("runs/s-export").energy.trunc is False
    said = [line for line in Path("runs/s-export/README.md").read_text().splitlines() if line.startswith("gebm sample")]
    again = said[0].replace("FOLDER", "runs/s-export").split()[1:]
    assert main([*again, "--device", "-2", "--n_samples", "6", "--log_name", "t"]) == 0
    np.testing.assert_array_equal(arrays("t")["samples"], arrays("s")["samples"])


def test_one_checkpoint_can_be_exported(images):
    checkpoint = newest_checkpoint(images / "runs" / "run")
    assert main(["export", str(checkpoint), "one"]) == 0
    assert (Path("one") / "model.safetensors").read_bytes() == (images / "out" / "model.safetensors").read_bytes()


def test_what_cannot_be_exported_is_said(images, capsys):
    Path("there").mkdir()
    run = str(images / "runs" / "run")
    for words, message in (
        ([], "write gebm export RUN [OUT]"),
        (["none"], "none: no such run"),
        (["there", "new"], "there/base.safetensors: no such file"),
        ([run, "there"], "there: exists; name another folder"),
        ([run, "a", "b"], "write gebm export RUN [OUT]"),
    ):
        assert main(["export", *words]) == 2
        assert message in capsys.readouterr().err
    assert [p.name for p in Path().iterdir()] == ["there"]


@pytest.mark.parametrize(
    "table", [None, [], {"columns": 3}, {"mean": "x"}, {"mean": [1.0]}, {"whitening": [[0.0] * 3] * 3}, {"shift": None}]
)
def test_damaged_units_are_refused(table, rows, capsys):
    shutil.copytree(rows / "out", "out")
    found = json.loads(Path("out/config.json").read_text())
    found["table"] = found["table"] | table if isinstance(table, dict) else table
    Path("out/config.json").write_text(json.dumps(found))
    assert main(["sample", "--g_path", "out", *DRAW]) == 2
    assert "config.json: the units of its columns are missing or damaged" in capsys.readouterr().err
