"""`--from_untrusted`: somebody else's run works where it is plain; nothing that it names is followed."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gebm.checkpoints import checkpoints
from gebm.cli import main
from gebm.config import Config
from gebm.model import GEBM, Architecture

OWN = """
from pathlib import Path
from gebm.networks import BASES
Path("ran").touch()
base = BASES["dcgan"]
"""
TINY = (
    "--device -2 --dataset digits --g_model dcgan --d_model dcgan --Z_dim 3 --width .05 --b_size 8 --total_gen_iter 2 "
    "--n_iter_d 1 --n_iter_d_init 1 --refine_iter 2"
).split()
DRAW = "--device -2 --n_samples 4 --num_sampler_steps 2 --sample_b_size 4".split()


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.delitem(sys.modules, "own", raising=False)
    Path("own.py").write_text(OWN)
    return tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    assert main(["train", *TINY, "--log_dir", str(folder), "--log_name", "x"]) == 0
    return folder / "x"


@pytest.fixture
def theirs(trained, here) -> Path:
    """A copy of a run that can be changed."""
    import shutil

    return Path(shutil.copytree(trained, here / "theirs"))


def name_code(run: Path) -> None:
    """Weights and the configuration beside them name a base that is code."""
    for folder in (run, *checkpoints(run)):
        Config.load(folder / "config.yaml")
        replace(Config.load(folder / "config.yaml"), g_model="own:base").save(folder / "config.yaml")
    for folder in checkpoints(run):
        model = GEBM.load(folder)
        model.architecture = replace(model.architecture, base="own:base")
        model.save(folder)
        (folder / "manifest.json").unlink()


def refused(argv: list[str], says: str, capsys) -> None:
    before = sorted(Path().rglob("*"))
    capsys.readouterr()
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert not Path("ran").exists() and sorted(Path().rglob("*")) == before


@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_a_plain_run_works(command, theirs):
    draw = DRAW if command == "sample" else ["--device", "-2"]
    assert main([command, "--from_untrusted", str(theirs), *draw]) == 0
    assert (theirs / "evaluation.json").is_file() == (command == "evaluate")


@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_code_is_imported_only_where_the_command_line_names_it(command, theirs, capsys):
    name_code(theirs)
    draw = DRAW if command == "sample" else ["--device", "-2"]
    argv = [command, "--from_untrusted", str(theirs), *draw]
    refused(argv, "made with 'own:base', which is imported only if you name it: give --g_model", capsys)
    assert main([*argv, "--g_model", "own:base"]) == 0 and Path("ran").exists()


def test_of_a_run_of_ones_own_code_is_imported_and_said(theirs, capsys):
    name_code(theirs)
    assert main(["sample", "--g_path", str(theirs), *DRAW]) == 0
    assert Path("ran").exists() and "code: own:base, which" in capsys.readouterr().out


@pytest.mark.parametrize("dataset", ["own:data", "folder:/", "npz:x.npz", "csv:/etc/passwd", "hub:x"])
def test_datasets_that_a_run_names_are_not_read(dataset, theirs, capsys):
    replace(Config.load(theirs / "config.yaml"), dataset=dataset).save(theirs / "config.yaml")
    refused(["evaluate", "--from_untrusted", str(theirs), "--device", "-2"], f"--dataset {dataset}; name it", capsys)
    assert main(["evaluate", "--from_untrusted", str(theirs), "--device", "-2", "--dataset", "digits"]) == 0


@pytest.mark.parametrize("how", ["--from_untrusted", "--g_path"])
@pytest.mark.parametrize("dataset", ["own:data", "folder:/nowhere"])
def test_sampling_does_not_read_the_dataset_that_a_run_names(dataset, how, theirs, capsys):
    """Neither for the chains nor for the report at the end."""
    for folder in (theirs, *checkpoints(theirs)):
        replace(Config.load(folder / "config.yaml"), dataset=dataset).save(folder / "config.yaml")
    for folder in checkpoints(theirs):
        (folder / "manifest.json").unlink()
    sample = ["sample", how, str(theirs), *DRAW]
    if how == "--from_untrusted" or dataset == "own:data":
        for reads in (["--eval_fid"], ["--temperature", "auto"]):
            refused([*sample, *reads], f"--dataset {dataset}; name it", capsys)
    assert main([*sample, "--log_name", "s"]) == 0 and not Path("ran").exists()
    printed = capsys.readouterr().out
    assert "report: could not show all of" in printed
    assert how == "--g_path" or f"the run's dataset is {dataset}, read only if named" in printed


@pytest.mark.parametrize("flag", ["--g_path", "--d_path"])
def test_weights_from_elsewhere_are_not_mixed_in(flag, theirs, trained, capsys):
    sample = ["sample", "--from_untrusted", str(theirs), *DRAW]
    refused([*sample, flag, str(trained)], f"{flag} {trained}: lies outside --from_untrusted {theirs}", capsys)
    assert main([*sample, flag, str(checkpoints(theirs)[0])]) == 0


@pytest.mark.parametrize("name", ["/dev/zero", "../config.yaml", "a/b", ".."])
def test_a_manifest_names_no_file_outside_its_folder(name, theirs, capsys):
    for folder in checkpoints(theirs):
        (folder / "manifest.json").write_text(json.dumps({"files": {name: {"bytes": 0, "sha256": "0"}}}))
    refused(["sample", "--from_untrusted", str(theirs), *DRAW], "is damaged (", capsys)


@pytest.mark.parametrize("link", ["link", "fifo"])
@pytest.mark.parametrize("command", ["sample", "evaluate", "report"])
def test_links_and_devices_are_not_followed(command, link, theirs, capsys):
    import os

    (theirs / "checkpoints" / "more").symlink_to("/etc") if link == "link" else os.mkfifo(theirs / "samples.png")
    refused([command, "--from_untrusted", str(theirs)], "--from_untrusted takes plain files", capsys)


def test_report_looks_at_nothing_outside(theirs, capsys):
    replace(Config.load(theirs / "config.yaml"), dataset="folder:/", data_path="/nowhere").save(theirs / "config.yaml")
    assert main(["report", "--from_untrusted", str(theirs)]) == 0
    assert "the run's dataset is folder:/, read only if named" in capsys.readouterr().out
    assert (theirs / "report.html").is_file()


def test_score(here, capsys):
    np.savetxt("t.csv", np.random.default_rng(0).normal(size=(60, 2)), delimiter=",")
    train = (
        "--device -2 --dataset csv:t.csv --g_model nvp --ml_epochs 1 --refine_epochs 1 --width .1 --log_name t".split()
    )
    assert main(["train", *train, "--partition_samples", "100"]) == 0
    assert main(["score", "t.csv", "--from_untrusted", "runs/t", "--device", "-2"]) == 0
    (checkpoint,) = checkpoints("runs/t")[-1:]
    (checkpoint / "manifest.json").unlink()
    GEBM.build(Architecture("nvp", "mlp", (2,), 2)).save(checkpoint)
    model = GEBM.load(checkpoint)
    model.architecture = replace(model.architecture, base="own:base")
    model.save(checkpoint)
    refused(["score", "t.csv", "--from_untrusted", "runs/t", "--device", "-2"], "imported only if you name it", capsys)


@pytest.mark.parametrize("command", ["train", "demo"])
def test_training_takes_none(command, capsys):
    refused([command, "--from_untrusted", "x"], "is of sample, evaluate, score, report; gebm", capsys)
