"""Tables from the command line: train, sample, evaluate and score, with tiny flows on small tables."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from gebm.checkpoints import checkpoints, newest_checkpoint
from gebm.cli import main
from gebm.config import Config
from gebm.data import load_table
from gebm.data.units import save_units
from gebm.model import GEBM

MEAN, SCALE = np.array([10.0, -3.0, 0.0]), np.array([[2.0, 0.0, 0.0], [1.0, 0.5, 0.0], [0.0, 0.3, 0.1]])
ROWS = 400
TINY = ["--width", "0.1", "--num_blocks", "2", "--device", "-2", "--disp_freq", "20", "--partition_samples", "2000"]
TRAIN = ["train", "--dataset", "csv:t.csv", "--g_model", "nvp", "--ml_epochs", "3", "--refine_epochs", "3", *TINY]


def write(file: str, n: int, seed: int = 0) -> np.ndarray:
    table = MEAN + np.random.default_rng(seed).standard_normal((n, 3)) @ SCALE
    np.savetxt(file, table, delimiter=",", header="a,b,c", comments="")
    return table


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("t.csv", ROWS)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run on the table."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write("t.csv", ROWS)
        assert main([*TRAIN, "--log_name", "run"]) == 0
    return folder / "runs" / "run"


def likelihood(run: Path) -> dict:
    return json.loads((run / "likelihood.json").read_text())


def scores(file: str) -> np.ndarray:
    with open(file) as stream:
        return np.array([[float(value) for value in row.values()] for row in csv.DictReader(stream)])


def test_a_run_says_its_likelihoods_and_keeps_what_later_commands_need(trained):
    found = likelihood(trained)
    assert found["nll"].keys() == {"train", "valid", "test"}
    test = found["nll"]["test"]
    assert test["gain"]["value"] == pytest.approx(test["base"]["value"] - test["gebm"]["value"], abs=1e-6)
    assert test["base"]["n"] == ROWS // 10
    assert {p.name for p in trained.iterdir()} >= {"config.yaml", "table.npz", "likelihood.txt", "stats.jsonl"}
    assert not (trained / "grids").exists()


def test_scores_are_log_densities_in_the_units_of_the_file(trained):
    rows = write("new.csv", 50, seed=1)
    assert main(["score", "new.csv", "--g_path", str(trained), "--device", "-2"]) == 0
    found = scores("new.scores.csv")
    assert found.shape == (50, 4) and (np.diff(found[:, 0]) == 1).all()
    # Against the density by hand: the whitened row's, times the volume factor.
    model = GEBM.load(newest_checkpoint(trained))
    stored = np.load(trained / "table.npz")
    x = torch.from_numpy((rows - stored["mean"]) @ stored["whitening"]).float()
    with torch.no_grad():
        log_q = model.log_prob(x, likelihood(trained)["log_partition"]["value"]).double().numpy()
    np.testing.assert_allclose(found[:, 1], log_q + np.linalg.slogdet(stored["whitening"])[1], atol=1e-4)
    assert ((found[:, 3] >= 0) & (found[:, 3] <= 1)).all()


def test_scores_overwrite_only_scores(trained, capsys):
    write("new.csv", 20, seed=1)
    score = ["score", "new.csv", "--g_path", str(trained), "--device", "-2"]
    assert main(score) == main(score) == 0  # its own are replaced
    Path("new.scores.csv").write_text("my,own\n1,2\n")
    Path("weights.safetensors").write_bytes(bytes(99))
    for flags, file in (([], "new.scores.csv"), (["--output", "weights.safetensors"], "weights.safetensors")):
        before = Path(file).read_bytes()
        capsys.readouterr()
        assert main([*score, *flags]) == 2
        why = "is there and is not a file of scores; name another file, or overwrite it with --force"
        assert capsys.readouterr().err == f"gebm: error: --output {file}: {why}\n"
        assert Path(file).read_bytes() == before
    assert main([*score, "--force"]) == 0
    assert len(scores("new.scores.csv")) == 20


def test_what_is_far_from_the_data_is_rare(trained, capsys):
    table = write("new.csv", 50, seed=1)
    np.savetxt("far.csv", table + 100, delimiter=",", header="a,b,c", comments="")
    assert main(["score", "far.csv", "--g_path", str(trained), "--device", "-2"]) == 0
    assert scores("far.scores.csv")[:, 3].max() == pytest.approx(1 / (36 + 1))  # of 36 validation rows
    assert "100.0% of the rows" in capsys.readouterr().out


def test_the_columns_of_a_scored_file_are_found_by_name(trained):
    table = write("new.csv", 20, seed=1)
    np.savetxt("turned.csv", table[:, [2, 0, 1]], delimiter=",", header="c,a,b", comments="")
    for file in ("new", "turned"):
        assert main(["score", f"{file}.csv", "--g_path", str(trained), "--device", "-2"]) == 0
    np.testing.assert_allclose(scores("new.scores.csv"), scores("turned.scores.csv"), rtol=1e-5)


def test_samples_are_rows_in_original_units(trained):
    flags = ["--g_path", str(trained), "--log_name", "s", "--num_sampler_steps", "5", "--n_samples", "200"]
    assert main(["sample", *flags, "--device", "-2"]) == 0
    with open("runs/s/samples.csv") as stream:
        reader = csv.reader(stream)
        assert next(reader) == ["a", "b", "c"]
        samples = np.array(list(reader), float)
    assert samples.shape == (200, 3)
    assert np.abs(samples.mean(0) - MEAN).max() < 1  # whitened rows would have mean 0
    assert (Path("runs/s") / "pairs.png").stat().st_size > 1000
    assert json.loads(Path("runs/s/summary.json").read_text())["beta"] == 1
    assert Config.load("runs/s/config.yaml").dataset == "csv:t.csv"  # of which the run is, though no flag named it


def test_a_run_is_loaded_by_its_folder(trained, monkeypatch):
    looks: list[Path] = []
    monkeypatch.setattr("gebm.model.newest_checkpoint", lambda run: looks.append(run) or newest_checkpoint(run))
    model = GEBM.load(trained)
    assert looks == [trained]  # a second look might find a newer checkpoint for the energy
    newest = GEBM.load(newest_checkpoint(trained))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), newest.state_dict().values()))


def test_evaluate_finds_what_the_run_said(trained, monkeypatch):
    monkeypatch.chdir(trained.parent.parent)
    assert main(["evaluate", str(trained), "--device", "-2", "--partition_samples", "2000", "--json", "e.json"]) == 0
    (found,) = json.loads(Path("e.json").read_text()).values()
    assert found["nll"] == likelihood(trained)["nll"]


def test_a_stopped_run_goes_on_to_the_same_likelihoods(trained, monkeypatch):
    from gebm.training.trainer import Trainer

    steps = []

    def step(trainer, original=Trainer.energy_step):
        steps.append(1)
        if len(steps) == 5:
            raise RuntimeError("killed")
        return original(trainer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "energy_step", step)
        with pytest.raises(RuntimeError, match="killed"):
            main([*TRAIN, "--log_name", "again", "--checkpoint_freq", "3"])
    assert main(["train", "--resume", "runs/again"]) == 0
    assert likelihood(Path("runs/again"))["nll"] == likelihood(trained)["nll"]


def test_several_splits_and_their_mean():
    flags = [*TRAIN, "--n_splits", "3", "--seed", "5", "--log_name", "three"]
    assert main(flags) == 0
    of = [likelihood(Path(f"runs/three/split-{seed}"))["nll"]["test"]["gebm"]["value"] for seed in (5, 6, 7)]
    found = likelihood(Path("runs/three"))
    mean = found["nll"]["test"]["gebm"]
    assert found["seeds"] == [5, 6, 7] and len(set(of)) == 3
    assert mean["value"] == pytest.approx(np.mean(of)) and mean["se"] == pytest.approx(np.std(of, ddof=1) / 3**0.5)
    # A split that is missing is made again, the others are read.
    assert main(["sample", "--g_path", "runs/three", "--device", "-2"]) == 2  # which of them?
    kept = Path("runs/three/split-5/likelihood.json").stat().st_mtime_ns
    Path("runs/three/split-7/likelihood.json").unlink()
    assert main(["train", "--resume", "runs/three"]) == 0
    assert likelihood(Path("runs/three"))["nll"] == found["nll"]
    assert Path("runs/three/split-5/likelihood.json").stat().st_mtime_ns == kept


def test_a_base_without_a_density_trains_and_says_that_there_is_no_likelihood(capsys, monkeypatch):
    Path("without_density.py").write_text(
        "from torch import nn\ndef base(shape, latent_dim, **options):\n    return nn.Linear(latent_dim, shape[0])\n"
    )
    monkeypatch.syspath_prepend(".")
    flags = ["train", "--dataset", "csv:t.csv", "--g_model", "without_density:base", *TINY, "--refine_epochs", "1"]
    assert main(flags) == 2 and "give --ml_epochs 0" in capsys.readouterr().err
    assert main([*flags, "--ml_epochs", "0", "--total_epochs", "2", "--log_name", "own"]) == 0
    assert "no likelihoods" in capsys.readouterr().out and not Path("runs/own/likelihood.json").exists()


def test_early_stopping_keeps_the_weights_of_the_least_validation_loss():
    flags = [*TRAIN, *"--ml_epochs 40 --patience 4 --lr_generator 0.1 --refine_epochs 0 --ema 0".split()]
    often = ["--disp_freq", "1", "--checkpoint_freq", "1"]
    assert main([*flags, "--train_mode", "base", "--log_name", "p", *often]) == 0
    rows = [json.loads(line) for line in Path("runs/p/stats.jsonl").read_text().splitlines()]
    losses = [row["valid_nll"] for row in rows if "valid_nll" in row]
    assert len(losses) < 40, "patience did not end the stage"
    assert likelihood(Path("runs/p"))["nll"]["valid"]["gebm"]["value"] == pytest.approx(min(losses), abs=1e-5)
    # and so do the weights that later commands read, though others were saved at the same step
    assert main(["evaluate", "runs/p", "--device", "-2", "--json", "e.json"]) == 0
    (found,) = json.loads(Path("e.json").read_text()).values()
    assert found["nll"]["valid"]["gebm"]["value"] == pytest.approx(min(losses), abs=1e-5)


@pytest.mark.parametrize("criterion", ["donsker", "ml", "cd", "kale"])
def test_every_criterion_trains_a_pair_of_flows(criterion):
    flags = ["--criterion", criterion, "--d_model", "gaussian", "--ml_epochs", "0", "--refine_epochs", "0"]
    assert main([*TRAIN, *flags, "--total_epochs", "3", "--cd_steps", "2", "--log_name", criterion]) == 0
    found = likelihood(Path("runs") / criterion)
    assert found["log_partition"]["n"] == 0  # a flow's partition is known
    assert all(np.isfinite(entry["value"]) for entry in found["nll"]["test"].values())


REFUSED = {
    "a network of images": ("train --dataset csv:t.csv --g_model dcgan", "no network of rows of a table"),
    "a flow for images": ("train --dataset digits --g_model nvp", "no network of images"),
    "likelihood without a density": ("train --dataset digits --criterion ml", "needs a base with a density"),
    "flags of images": ("train --dataset csv:t.csv --total_gen_iter 5", "tables count passes"),
    "flags of tables": ("train --dataset digits --n_splits 3", "is images"),
    "distances of rows": ("sample --dataset csv:t.csv --g_path {run} --eval_fid", "distances are of images"),
    "kind": ("train --dataset cifar10 --dataset_type uci", "are images"),
    "contradiction": ("train --dataset csv:t.csv --generator maf --g_model nvp", "contradicts"),
    "no run to score with": ("score t.csv", "name the run to score with"),
    "no column of that name": ("score bad.csv --g_path {run}", "b"),
    "too many words": ("score t.csv t.csv --g_path {run}", "gebm score FILE"),
    "no file": ("score nothing.csv --g_path {run}", "no such file"),
    "itself": ("score t.csv --g_path {run} --output t.csv", "is the file to score"),
    "a page": ("report {run}", "pages are of images"),
    "output elsewhere": ("score t.csv --g_path {run} --output no/where.csv", "folder that exists"),
    "another split": ("evaluate {run} --seed 3", "was trained on"),
    "no such column": ("train --dataset csv:t.csv --drop d", "no such column"),
    "columns twice": ("train --dataset csv:t.csv --drop a --columns b", "give one of the two"),
    "columns of images": ("train --dataset digits --drop a", "is images"),
    "columns of images to sample": ("data prepare --dataset digits --columns a", "is images"),
    "a folder": ("train --dataset csv:.", "a folder; name a table"),
    "a folder to score": ("score . --g_path {run}", "a folder; name a table"),
    "other columns": ("evaluate {run} --drop c", "rows of (2,)"),
    "a header of no text": ("train --dataset npz:t.npz --dataset_type uci --header no", "is of CSV files"),
    "other units": ("evaluate {run} --scaling whiten", "was trained on"),
    "energy of another split": ("train --dataset csv:t.csv --seed 1 --d_path {run} --ml_epochs 0", "was trained on"),
    "resumed on another split": ("train --resume {run} --seed 1 --refine_epochs 9", "was trained on"),
    "resumed as several": ("train --resume {run} --n_splits 2", "was made with 1"),
    "several of no file": ("train --dataset csv:none.csv --n_splits 2", "no such file"),
    "a schedule of images": ("train --dataset csv:t.csv --use_scheduler --scheduler mmd", "compares images"),
    "the demo": ("demo --dataset csv:t.csv", "is of images"),
    "passes of no stage": ("train --dataset csv:t.csv --train_mode base --refine_epochs 3", "has no part"),
    "chains that cannot go on": ("train --dataset csv:t.csv --criterion cd --latent_sampler sir", "cannot go on"),
    "too few rows": ("train --dataset csv:few.csv", "too few ("),
    "Z_dim": ("train --dataset csv:t.csv --g_model nvp --Z_dim 7", "--Z_dim"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_line_and_nothing_is_written(case, trained, capsys):
    Path("bad.csv").write_text("a,x,c\n1,2,3\n4,5,6\n")
    write("few.csv", 20)
    before = {str(p): p.read_bytes() for p in Path().rglob("*") if p.is_file()}
    command, reason = REFUSED[case]
    device = [] if command.startswith("report") else ["--device", "-2"]
    assert main([*command.format(run=trained).split(), *device]) == 2
    err = capsys.readouterr().err
    assert reason in err and err.count("\n") == 1
    assert {str(p): p.read_bytes() for p in Path().rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    "key, value",
    [
        ("mean", np.zeros(())),
        ("mean", np.full(3, np.nan)),
        ("whitening", np.eye(2)),
        ("whitening", np.zeros((3, 3))),
        ("valid", np.zeros((5, 2), np.float32)),
        ("valid", np.zeros((0, 3), np.float32)),
        ("shift", np.zeros(2)),
        ("seed", np.array("x")),
        ("noise", np.zeros((2, 2))),
    ],
)
def test_a_damaged_table_of_a_run_is_one_line(trained, capsys, key, value):
    shutil.copytree(trained, "run")
    with np.load("run/table.npz") as stored:
        arrays = {name: stored[name] for name in stored.files}
    np.savez("run/table.npz", **{**arrays, key: value})
    assert main(["score", "t.csv", "--g_path", "run", "--device", "-2"]) == 2
    err = capsys.readouterr().err
    assert "damaged" in err and err.count("\n") == 1 and not Path("t.scores.csv").exists()


def test_rows_too_far_for_a_number_are_the_least_likely(trained, capsys):
    Path("far.csv").write_text("a,b,c\n10,-3,0\n1e39,5,5\n1e300,0,0\n")
    assert main(["score", "far.csv", "--g_path", str(trained), "--device", "-2"]) == 0
    near, *far = scores("far.scores.csv")
    assert np.isfinite(near).all() and near[3] > 0
    assert all(row[1] == -np.inf and row[3] == pytest.approx(1 / 37) for row in far)
    assert "2 rows, left out" in capsys.readouterr().out


def test_a_log_partition_of_other_weights_is_not_used(trained, capsys):
    shutil.copytree(trained, "run")
    stored = likelihood(Path("run"))
    stored["log_partition"]["value"] += 5
    Path("run/likelihood.json").write_text(json.dumps(stored))

    def mean() -> float:
        assert main(["score", "t.csv", "--g_path", "run", "--device", "-2"]) == 0
        return scores("t.scores.csv")[:, 1].mean()

    trusted = mean()
    Path("run/likelihood.json").write_text(json.dumps({**stored, "checkpoint": "refine-00000001"}))
    assert mean() == pytest.approx(trusted + 5, abs=0.5)
    Path("run/likelihood.json").write_text("{}")
    assert mean() == pytest.approx(trusted + 5, abs=0.5)


@pytest.mark.parametrize("source", ["run", "export", "likelihood.json without k-hat", "measured anew"])
def test_scores_say_what_their_log_partition_is_worth(trained, capsys, monkeypatch, source):
    """The log-partition with its error, and the same warning wherever it comes from."""
    write("new.csv", 5)
    shutil.copytree(trained, "run")
    found = likelihood(Path("run"))["log_partition"]

    def said(*flags: str, run: str = "run") -> str:
        capsys.readouterr()
        assert main(["score", "new.csv", "--g_path", run, "--device", "-2", *flags]) == 0
        return " ".join(capsys.readouterr().out.split())

    well = "log-partition {value:.4f} +- {se:.4f}, from {n:,} base samples, relative ESS".format(**found)
    assert well in (good := said()) and "warning" not in good
    if source == "measured anew":
        heavy = torch.randn(500, generator=torch.Generator().manual_seed(0)).double() * 20
        monkeypatch.setattr("gebm.metrics.likelihood.base_energies", lambda *args: heavy)
        bad = said("--partition_samples", "500")
        assert "warning a few of the 500 weights decide this log-partition" in bad
        return
    k = None if source.endswith("k-hat") else 0.93
    stored = likelihood(Path("run"))
    stored["log_partition"] |= {"pareto_k": k, "warning": "as above", "se": 0.04}
    Path("run/likelihood.json").write_text(json.dumps(stored))
    if source == "export":
        assert main(["export", "run", "out"]) == 0
    bad = said(run="out" if source == "export" else "run")
    assert f"+- 0.0400, from {found['n']:,} base" in bad
    assert f"weights decide this log-partition (Pareto k-hat {k or 'not known'}" in bad


def test_the_newest_run_is_evaluated_on_its_own_split():
    assert main([*TRAIN, "--seed", "4", "--scaling", "whiten", "--log_name", "run"]) == 0
    assert main(["evaluate", "--dataset", "csv:t.csv", "--device", "-2", "--partition_samples", "2000"]) == 0
    found = json.loads(Path("runs/run/evaluation.json").read_text())
    assert found["nll"]["test"]["base"]["value"] == likelihood(Path("runs/run"))["nll"]["test"]["base"]["value"]


@pytest.mark.parametrize(
    "command", ["evaluate --dataset csv:t.csv", "score new.csv", "sample --n_samples 4", "export x out"]
)
@pytest.mark.parametrize("known", [True, False])
def test_an_energy_of_another_split_or_of_unknown_units_is_refused(trained, capsys, monkeypatch, command, known):
    write("new.csv", 5)
    energy = Path("other")
    shutil.copytree(newest_checkpoint(trained), energy)
    if known:
        save_units(energy, load_table("csv:t.csv", seed=1))
    words = command.split()
    if words[0] == "export":  # a sampling run names the two
        Path("x").mkdir()
        Config(mode="sample", g_path=str(trained), d_path=str(energy)).save(Path("x/config.yaml"))
        argv = words
    else:
        argv = [*words, "--g_path", str(trained), "--d_path", str(energy), "--device", "-2"]
    monkeypatch.setattr("gebm.commands.evaluate.evaluate_table", None)
    before = sorted(Path().rglob("*"))
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and ("an energy of csv:t.csv standard seed 1" if known else "no table.npz") in error
    assert sorted(Path().rglob("*")) == before


def test_base_steps_against_a_frozen_energy_are_kept(trained):
    flags = "--train_mode base --ml_epochs 0 --lr_generator 1e-2 --total_epochs 20 --ema 0 --log_name b".split()
    pair = ["--g_model", "nvp", "--d_path", str(trained)]
    assert main(["train", "--dataset", "csv:t.csv", *pair, *TINY, *flags]) == 0
    rows = [json.loads(line) for line in Path("runs/b/stats.jsonl").read_text().splitlines()]
    looks = [row["valid_nll"] for row in rows if "valid_nll" in row]
    assert len(looks) > 1 and rows[-1]["images"] >= 20 * 324  # a look a pass
    best = likelihood(Path("runs/b"))["nll"]["valid"]["gebm"]["value"]
    assert best <= min(looks) + 0.05


def test_an_energy_that_was_trained_is_not_made_a_copy_of_the_base():
    pair = ["--d_model", "nvp", "--ema", "0", "--lr", "0"]
    assert main([*TRAIN, *pair, "--log_name", "first"]) == 0
    first = likelihood(Path("runs/first"))["nll"]["test"]
    assert first["gain"]["value"] == pytest.approx(0, abs=1e-5)  # a copy: nothing was learnt on top
    assert main([*TRAIN, *pair, "--ml_epochs", "9", "--d_path", "runs/first", "--log_name", "second"]) == 0
    second = likelihood(Path("runs/second"))["nll"]["test"]
    assert second["gebm"]["value"] == pytest.approx(first["gebm"]["value"], abs=1e-4)
    assert abs(second["gain"]["value"]) > 0.01
    flags = ["train", "--dataset", "csv:t.csv", "--refine_epochs", "3", *TINY, "--g_path", "runs/first"]
    assert main([*flags, *pair, "--train_mode", "energy", "--log_name", "third"]) == 0
    assert likelihood(Path("runs/third"))["nll"]["test"]["gain"]["value"] == pytest.approx(0, abs=1e-5)


def test_beta_is_not_fitted_to_rows(trained, capsys):
    assert main(["sample", "--g_path", str(trained), "--temperature", "auto", "--dataset", "csv:t.csv"]) == 2
    assert "--temperature auto: is fitted to images, and this is a table" in capsys.readouterr().err


def test_contrastive_divergence_ends_with_a_log_partition():
    flags = ["--criterion", "cd", "--d_model", "mlp", "--cd_steps", "2", "--log_name", "cd"]
    assert main([*TRAIN, *flags]) == 0
    found = likelihood(Path("runs/cd"))
    assert found["c"] != 0 and abs(found["c"] - found["log_partition"]["value"]) < 0.1


def test_a_run_resumed_where_a_stage_ended_does_not_estimate_c_again(trained):
    """Of contrastive divergence: the estimate draws numbers and moves power iterations."""
    flags = ["--criterion", "cd", "--d_model", "mlp", "--cd_steps", "2", "--total_epochs", "1"]
    assert main([*TRAIN, *flags, "--log_name", "whole", "--keep", "9"]) == 0
    shutil.copytree("runs/whole", "runs/parts")
    for checkpoint in checkpoints("runs/parts"):
        if checkpoint.name.startswith("refine"):
            shutil.rmtree(checkpoint)
    assert main(["train", "--resume", "runs/parts", "--device", "-2"]) == 0
    whole, parts = (newest_checkpoint(f"runs/{name}") for name in ("whole", "parts"))
    assert whole.name == parts.name
    for file in ("energy.safetensors", "training.safetensors"):
        assert (whole / file).read_bytes() == (parts / file).read_bytes()


def test_an_infinite_likelihood_is_said_and_goes_through(trained, capsys):
    """A row that is too far for any number; every command that reads the run goes on."""
    rows = write("far.csv", ROWS)
    np.savez("far.npz", train=rows, test=np.concatenate([rows[:20], 1e30 * rows[:1]]))
    train = [*TRAIN, "--dataset", "npz:far.npz", "--dataset_type", "uci", "--log_name", "far"]
    assert main(train) == 0 and "infinite" in capsys.readouterr().out
    for command in (["evaluate", "runs/far"], ["export", "runs/far", "out"]):
        assert main([*command, "--device", "-2"]) == 0, capsys.readouterr().err


def test_splits_go_on_together():
    assert main([*TRAIN, "--n_splits", "2", "--log_name", "r"]) == 0
    first = {seed: likelihood(Path(f"runs/r/split-{seed}")) for seed in (0, 1)}
    assert main(["train", "--resume", "runs/r", "--refine_epochs", "4", "--device", "-2"]) == 0
    again = {seed: likelihood(Path(f"runs/r/split-{seed}")) for seed in (0, 1)}
    assert all(first[seed]["checkpoint"] != again[seed]["checkpoint"] for seed in (0, 1))
    mean = likelihood(Path("runs/r"))["nll"]["test"]["gebm"]["value"]
    assert mean == pytest.approx(np.mean([again[s]["nll"]["test"]["gebm"]["value"] for s in (0, 1)]))
