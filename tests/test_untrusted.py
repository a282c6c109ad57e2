"""`--from_untrusted`: somebody else's run works where it is plain; nothing that it names is followed."""

import json
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from gebm.checkpoints import checkpoints
from gebm.cli import main
from gebm.config import Config
from gebm.model import GEBM, Architecture
from gebm.untrusted import without_its_modules

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


EVALUATE = ["--device", "-2"]


def weights_of(run: Path) -> Path:
    return checkpoints(run)[0] / "base.safetensors"


@pytest.mark.parametrize(
    "words",
    [
        lambda run: [str(run.resolve()), "--from_untrusted", "theirs"],
        lambda run: ["theirs/", "--from_untrusted", str(run.resolve())],
        lambda run: ["link", "--from_untrusted", "theirs"],
        lambda run: ["theirs", "--from_untrusted=other/../theirs/"],
        lambda run: ["other/../theirs", "--from_untrusted", "./theirs"],
        lambda run: [str(checkpoints("theirs")[-1]), "--from_untrusted", "theirs"],
        lambda run: ["theirs", "--from_untrusted", str(checkpoints("theirs")[-1])],
        lambda run: [
            str(checkpoints("theirs")[-1]),
            "--from_untrusted",
            f"{checkpoints('theirs')[0]}/base.safetensors",
        ],
        lambda run: ["mine", "--from_untrusted", "theirs"],
    ],
)
def test_every_subject_in_the_folder_is_untrusted_however_it_is_spelled(words, theirs, capsys):
    """Also one's own folder whose checkpoints are a link into it."""
    name_code(theirs)
    Path("other").mkdir()
    Path("link").symlink_to("theirs")
    Path("mine").mkdir()
    Path("mine/checkpoints").symlink_to(theirs / "checkpoints")
    capsys.readouterr()
    assert main(["evaluate", *words(theirs), *EVALUATE]) == 2
    assert not Path("ran").exists() and "Traceback" not in capsys.readouterr().err


def test_from_within_the_folder_a_subject_is_untrusted(theirs, monkeypatch, capsys):
    name_code(theirs)
    Path("other").mkdir()
    for folder, subject, named in (("theirs", ".", "../theirs"), ("other", "../theirs", "../other/../theirs")):
        monkeypatch.chdir(theirs.parent / folder)
        assert main(["evaluate", subject, "--from_untrusted", named, *EVALUATE]) == 2
        assert "imported only if you name it" in capsys.readouterr().err and not list(theirs.parent.rglob("ran"))


def test_a_subject_in_the_folder_is_evaluated_once_and_others_beside_it(theirs, trained):
    for words, count in ((["theirs"], 1), ([str(theirs)], 1), ([str(trained)], 2)):
        assert main(["evaluate", *words, "--from_untrusted", "theirs", "--json", "found.json", *EVALUATE]) == 0
        assert len(json.loads(Path("found.json").read_text())) == count
    joint = checkpoints("theirs")[0]
    argv = ["evaluate", "--from_untrusted", "theirs", "--g_path", str(joint), "--d_path", str(joint)]
    assert main([*argv, "--json", "found.json", *EVALUATE]) == 0
    assert json.loads(Path("found.json").read_text())["theirs"]["base_path"] == str(joint)


@pytest.mark.parametrize("folder", ["theirs", "theirs/checkpoints", "."])
def test_python_looks_neither_in_the_folder_nor_where_one_works(folder, theirs, monkeypatch):
    monkeypatch.chdir(folder)
    installed = [entry for entry in sys.path if entry]
    monkeypatch.setattr(sys, "path", ["", str(theirs), f"{theirs}/../theirs/grids", *installed])
    before = sys.path[:]
    with without_its_modules(str(theirs / "checkpoints/..")):
        assert sys.path == installed
    assert sys.path == before
    with without_its_modules(""):
        assert "" in sys.path


def test_where_one_works_only_the_code_that_one_names_is_found(theirs, monkeypatch):
    Path("other.py").write_text("")
    (theirs / "mine.py").write_text("")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    with without_its_modules("theirs", ["own:base", "csv:t.csv", "dcgan"]):
        assert find_spec("own") and not find_spec("other")
    assert not find_spec("own")
    monkeypatch.chdir(theirs)
    with without_its_modules(".", ["mine:base"]):
        assert not find_spec("mine")


def test_settings_of_matplotlib_in_the_folder_are_not_taken(theirs, monkeypatch, capsys):
    (theirs / "matplotlibrc").write_text("text.usetex: true")  # which starts programs
    monkeypatch.chdir(theirs)
    refused(["report", "--from_untrusted", "."], "matplotlibrc: matplotlib would take its settings from it", capsys)
    monkeypatch.chdir(theirs.parent)
    assert main(["report", "--from_untrusted", "theirs"]) == 0


def test_what_lies_around_a_checkpoint_is_checked_too(theirs, capsys):
    (theirs / "data.npz").unlink()
    (theirs / "data.npz").symlink_to("/etc/passwd")
    for part in (checkpoints(theirs)[-1], checkpoints(theirs)[-1] / "base.safetensors"):
        refused(["evaluate", "--from_untrusted", str(part), *EVALUATE], "data.npz: a link", capsys)


@pytest.mark.parametrize("name", ["cifar10", "redwine", "celeba", "lsun", "imagenet32"])
def test_no_data_are_fetched_or_read_because_a_run_names_them(name, theirs, capsys, monkeypatch):
    monkeypatch.setattr("pooch.retrieve", lambda *_, **__: pytest.fail("a download was begun"))
    stored = replace(Config.load(theirs / "config.yaml"), dataset=name)
    for folder in (theirs, *checkpoints(theirs)):
        stored.save(folder / "config.yaml")
    for folder in checkpoints(theirs):
        (folder / "manifest.json").unlink()
    refused(["evaluate", "--from_untrusted", str(theirs), *EVALUATE], f"--dataset {name}; name it too", capsys)
    sample = ["sample", "--from_untrusted", str(theirs), *DRAW]
    for reads in (["--eval_fid"], ["--temperature", "auto"]):
        refused([*sample, *reads], f"--dataset {name}; name it too", capsys)
    assert main(["report", "--from_untrusted", str(theirs)]) == 0
    assert f"the run's dataset is {name}, read only if named" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["--from_untrusted", "theirs", "cifar10"], ["theirs", "--from_untrusted", "--dataset", "cifar10"],
        ["--from_untrusted=theirs", "--dataset=cifar10"], ["--dataset", "cifar10", "theirs", "--from_untrusted"],
    ],
)  # fmt: skip
def test_a_report_reads_the_data_that_the_user_names(words, theirs, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "pooch.retrieve", lambda url, *_, **__: asked.append(url) or (_ for _ in ()).throw(OSError("no"))
    )
    replace(Config.load(theirs / "config.yaml"), dataset="cifar10").save(theirs / "config.yaml")
    assert main(["report", *words]) == 0
    assert len(asked) == 1 and "the download failed" in capsys.readouterr().out


def test_no_features_are_fetched_because_a_run_names_them(theirs, capsys, monkeypatch):
    monkeypatch.setattr("gebm.metrics.features.download", lambda folder: pytest.fail("a download was begun"))
    stored = replace(Config.load(theirs / "config.yaml"), eval_fid=True, fid_features="inception", fid_samples=2000)
    stored.save(theirs / "config.yaml")
    assert main(["report", "--from_untrusted", str(theirs)]) == 0
    assert "the run's features are inception, whose weights are fetched only if named" in capsys.readouterr().out


def test_figures_that_come_with_the_folder_are_not_merged_with_ones_own(theirs, trained):
    forged = {"metrics": {"FID": {"better": "lower"}}, "n_fake": 50_000}
    assert main(["evaluate", "--from_untrusted", "theirs", *EVALUATE]) == 0
    found = json.loads((theirs / "evaluation.json").read_text())
    assert set(found["weights"]) == {"base", "energy"}
    (theirs / "evaluation.json").write_text(json.dumps({**found, **forged}))
    assert main(["evaluate", "--from_untrusted", "theirs", *EVALUATE]) == 0
    assert "metrics" not in json.loads((theirs / "evaluation.json").read_text())


def test_figures_of_other_weights_under_the_same_path_are_neither_merged_nor_shown(theirs, capsys):
    mine = ["evaluate", "theirs", *EVALUATE, "--fid_features", "pixels"]
    assert main([*mine, "--eval_fid", "--fid_samples", "20", "--num_sampler_steps", "1"]) == 0
    assert main(mine) == 0
    before = json.loads((theirs / "evaluation.json").read_text())
    assert "FD(pixels)" in before["metrics"]
    newest = checkpoints(theirs)[-1]
    model = GEBM.load(newest)
    with torch.no_grad():
        model.log_partition += 1
    model.save(newest)
    (newest / "manifest.json").unlink()
    capsys.readouterr()
    assert main(["report", "theirs"]) == main(["export", "theirs", "out"]) == 0
    assert "evaluation.json is of other weights than the run has now" in capsys.readouterr().out
    assert "FD(pixels)" not in Path("out/README.md").read_text()
    assert main(mine) == 0
    after = json.loads((theirs / "evaluation.json").read_text())
    assert "metrics" not in after and after["energy_path"] == before["energy_path"]
    assert after["weights"]["base"] == before["weights"]["base"] != after["weights"]["energy"]


def test_data_that_come_with_the_folder_are_not_the_users(theirs, monkeypatch, tmp_path):
    """Worked in, its `data` would otherwise be the folder for data, and its caches the user's."""
    monkeypatch.chdir(theirs)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    Path("data/cache").mkdir(parents=True)
    flags = ["--eval_fid", "--fid_samples", "4", "--fid_features", "pixels", *EVALUATE, "--num_sampler_steps", "1"]
    assert main(["evaluate", "--from_untrusted", ".", *flags]) == 0
    assert not list(Path("data/cache").iterdir()) and list((tmp_path / "home").rglob("reference-*"))


def test_an_export_of_samples_of_somebody_elses_pair_runs_no_code_of_theirs(theirs, capsys):
    assert main(["sample", "--from_untrusted", "theirs", *DRAW, "--log_name", "s"]) == 0
    name_code(theirs)
    argv = ["export", "runs/s", "out"]
    refused(argv, "made with 'own:base', which is imported only if you name it", capsys)


@pytest.mark.parametrize("command", ["train", "demo"])
def test_training_takes_none(command, capsys):
    refused([command, "--from_untrusted", "x"], "is of sample, evaluate, score, report; gebm", capsys)
