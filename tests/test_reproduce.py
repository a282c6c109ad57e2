"""The driver of the paper's results: every row runs, its page says what may be said, and what was killed goes on."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gebm.commands.setup import schedule_of
from gebm.config import Config
from gebm.data import DATASETS, TABLES, load_images, load_table
from gebm.parsing import parse
from gebm.samplers import SAMPLERS

ROOT = Path(__file__).resolve().parent.parent
REPRODUCE = ROOT / "reproduce"


@pytest.fixture
def driver(monkeypatch):
    """The module run.py, and what it imports."""
    for folder in ("benchmarks", "reproduce"):
        monkeypatch.syspath_prepend(ROOT / folder)
    import run

    return run


def begin(*words: str) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, str(REPRODUCE / "run.py"), *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finished(*words: str) -> str:
    process = begin(*words)
    printed, _ = process.communicate()
    assert process.returncode == 0, printed
    return printed


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """The folder of every row at its least."""
    folder = tmp_path_factory.mktemp("reproduce") / "out"
    finished("all", "--scale", "tiny", "--summary", "--out", str(folder))
    return folder


def results_in(folder: Path) -> dict[str, dict]:
    found = (json.loads(path.read_text()) for path in folder.glob("*.json"))
    return {result["row"]: result for result in found}


@pytest.mark.slow
def test_every_row_is_written_with_base_beside_gebm(made, driver):
    import stages

    results = results_in(made)
    assert results.keys() == driver.ROWS.keys()
    for name, result in results.items():
        page, row = (made / f"{name}.md").read_text(), driver.ROWS[name]
        assert result["figures"] and all("base" in f and "gebm" in f for f in result["figures"])
        assert row.kind == "toy" or "Stand-in data" in page
        assert all(command in page for command in result["commands"]) and "hours" in page or row.kind == "toy"
        for picture in result["pictures"]:
            assert np.asarray(Image.open(made / picture).convert("RGB")).std() > 5 and f"]({picture})" in page
        if row.kind == "images":
            assert [f["setting"] for f in result["figures"]] == [
                s.name for s in stages.settings_of(row, driver.SCALES["tiny"])
            ]
            for f in result["figures"]:
                assert f["measure"] == "FD(pixels-8x8)" and f["features"] == "pixels-8x8"
                assert (f["n_fake"], f["split"]) == (16, f"{row.dataset} test")
                assert f["ratio"] == pytest.approx(f["gebm"]["value"] / f["base"]["value"])
            assert "not FID" in page and "16 samples" in page


@pytest.mark.slow
def test_our_distances_are_never_named_as_the_published(made):
    for name in results_in(made):
        own, _, published = (made / f"{name}.md").read_text().partition("## Published")
        assert "| FID" not in own.split("## ")[0].replace("published FID", "")
        assert re.search(r"\[(S|M\+?|D)", published) and "Marks:" in published
    summary = (made / "summary.md").read_text()
    assert "FD(pixels-8x8)" in summary and "| FID |" not in summary and "(stand-in)" in summary


@pytest.mark.slow
def test_what_is_done_is_not_done_again(made):
    before = {path: path.stat().st_mtime_ns for path in (made / "runs").rglob("*")}
    finished("fid-cifar10-sngan", "uci-redwine", "toy", "--scale", "tiny", "--out", str(made))
    assert {path: path.stat().st_mtime_ns for path in (made / "runs").rglob("*")} == before


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_figures(made, tmp_path):
    """A kill in training, and one in sampling, whose folder is begun anew."""
    name, words = "fid-cifar10-sngan", ("fid-cifar10-sngan", "--scale", "tiny", "--out", str(tmp_path))
    runs = tmp_path / "runs"
    kill_when(lambda: list(runs.glob("cifar10-sngan/checkpoints/joint-*")), *words)
    assert not (runs / "cifar10-sngan" / "report.html").exists()
    kill_when(lambda: (runs / "cifar10-sngan-langevin-beta-1" / "config.yaml").exists(), *words)
    assert not (tmp_path / f"{name}.json").exists()
    assert "resuming" in (runs / "cifar10-sngan.log").read_text()
    trained = (runs / "cifar10-sngan" / "report.html").stat().st_mtime_ns
    finished(*words)
    assert (runs / "cifar10-sngan" / "report.html").stat().st_mtime_ns == trained
    ours, whole = results_in(tmp_path)[name], results_in(made)[name]
    assert ours["figures"] == whole["figures"]


def kill_when(ready, *words: str) -> None:
    """Run, and kill as soon as `ready()` holds."""
    process = begin(*words)
    while not ready():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_commands_are_those_of_the_paper(driver):
    """The full scale: the documented configurations, nothing smaller."""
    place = driver.Place(Path("out"), "data")
    train, langevin, *others = driver.stages_of(driver.ROWS["fid-cifar10-resnet"], driver.SCALES["full"], place)
    config, _ = parse(train.words, "train")
    assert (config.total_gen_iter, config.b_size, config.width, config.g_model) == (150_000, 128, 1.0, "resnet-sn")
    assert schedule_of(config).refines and schedule_of(config).refine_steps == 15_000
    config, _ = parse(langevin.words, "sample")
    assert (config.latent_sampler, config.lmc_gamma, config.temperature) == ("langevin", 1e-4, 100)
    assert (config.num_sampler_steps, config.step_decay, config.step_decay_every) == (1000, 0.1, 200)
    assert (config.fid_samples, config.fid_split, config.fid_features) == (50_000, "train", "inception")
    assert config.g_path == config.d_path == str(train.folder(place))
    assert {parse(stage.words, "sample")[0].temperature for stage in others} == {1}


def test_shorter_chains_go_as_far(driver):
    """At fewer steps the sum of h stays what it is at full scale, decays included."""
    import stages

    def length(scale: str, setting) -> float:
        flags = {"num_sampler_steps": 1000, "step_decay_every": 200, "lmc_gamma": 1e-4}
        flags |= stages.shortened(setting, driver.SCALES[scale])
        kernel = SAMPLERS[flags["latent_sampler"]].from_gamma(flags["lmc_gamma"])
        every, power = flags["step_decay_every"], kernel.gamma_power
        steps = range(flags["num_sampler_steps"])
        return sum(kernel.step_size * (0.1**power) ** (k // every if every else 0) for k in steps)

    chains = {
        s.name: s for row in driver.ROWS.values() for s in row.settings if "lmc" in s.name or "langevin" in s.name
    }
    assert len(chains) == 6
    for setting in chains.values():
        assert length("tiny", setting) == pytest.approx(length("full", setting), rel=1e-4)
        assert length("small", setting) == pytest.approx(length("full", setting), rel=1e-4)


def test_every_row_has_its_published_figures_and_every_published_figure_a_row(driver):
    published = driver.results.published()
    of_images = {name for name, row in driver.ROWS.items() if row.kind != "table"}
    assert published.keys() == of_images | {"uci", "uci-notebook"}
    for name in of_images:
        settings = {s.name for s in driver.ROWS[name].settings}
        for entry in published[name]["figures"]:
            assert entry["mark"] in ("S", "M+", "M", "D") and entry["source"]
            assert entry.get("setting", next(iter(settings), None)) in settings or name == "toy"
    tables = {row.dataset for row in driver.ROWS.values() if row.kind == "table"}
    assert tables == set(TABLES)
    for method in driver.uci_table.METHODS:
        assert published["uci"][method].keys() == {"title", *TABLES}
        assert all(re.fullmatch(r"[\d.]+ \[(S|M\+?)\]", published["uci"][method][name]) for name in TABLES)


def test_relative_gains_carry_the_marks_of_what_they_are_of(driver):
    rows = driver.ROWS
    assert driver.results._beside(rows["samplers-celeba"], "langevin") == "0.754 [S]"
    assert driver.results._beside(rows["fid-cifar10-sngan"], "langevin") == "0.719 [D of S and M+]"
    assert driver.results._beside(rows["fid-cifar10-sngan"], "mala-beta-1") == ""


def test_stand_ins_are_read_by_the_real_readers(driver, tmp_path):
    driver.standins.write(tmp_path / "data")
    with driver.standins.fewer():
        for name in set(DATASETS) - {"digits"}:
            data = load_images(name, tmp_path / "data")
            assert data.shape == (3, 32, 32) and data.train.std() > 20
            assert len(data.train) == 250 and len(data.test) in (50, 60)
        for name in TABLES:
            data = load_table(name, tmp_path / "data", protocol="paper", seed=1)
            assert data.shape[0] == {"hepmass": 22, "miniboone": 43, "parkinsons": 19}.get(name, 11)
    from gebm.data import cifar10

    assert cifar10.RECORDS == 10_000


def test_costs_grow_as_the_work(driver):
    """Twice the base steps cost twice, and an energy step about what its passes cost."""
    train = Config(total_gen_iter=1000, width=0.1, b_size=128)
    double = Config(total_gen_iter=2000, width=0.1, b_size=128)
    assert driver.costs.of_training(double) == pytest.approx(2 * driver.costs.of_training(train))
    sample = Config(fid_samples=1000, num_sampler_steps=10, fid_features="pixels")
    assert driver.costs.of_sampling(sample, train) == 1000 * 10 * driver.costs.step("sngan", 0.1).gradient
    each = driver.costs.step("sngan", 1.0)
    # The energy's convolutions at full width, a multiply-add as two, forwards once.
    layers = [(3, 64, 3, 32), (64, 128, 4, 16), (128, 128, 3, 16), (128, 256, 4, 8), (256, 256, 3, 8), (256, 512, 4, 4)]
    energy = sum(2 * i * o * k * k * side**2 for i, o, k, side in [*layers, (512, 512, 3, 4)])
    ups = [(512, 256, 4, 4), (256, 128, 4, 8), (128, 64, 4, 16), (64, 3, 3, 32)]
    base = sum(2 * i * o * k * k * side**2 for i, o, k, side in ups) + 2 * 100 * 8192
    assert each.gradient == pytest.approx(2 * (energy + base), rel=0.05)  # of the samples alone, not of the weights
    assert 6 * energy < each.energy < 12 * energy + base


def test_list_prints_commands_data_and_cost(driver, capsys, tmp_path):
    assert driver.main(["samplers-lsun", "uci-hepmass", "--list", "--out", str(tmp_path / "none")]) == 0
    printed = capsys.readouterr().out
    assert printed.count("gebm train") == 6 and printed.count("gebm sample") == 4
    assert "bedroom_train_lmdb" in printed and "GPU-hours" in printed and "CPU-hours" in printed
    assert not (tmp_path / "none").exists()


def test_missing_data_is_said_and_other_rows_go_on(driver, capsys, tmp_path):
    words = ["samplers-celeba", "samplers-lsun", "--scale", "small", "--data_path", str(tmp_path), "--out"]
    assert driver.main([*words, str(tmp_path / "out")]) == 1
    errors = capsys.readouterr().err
    assert "samplers-celeba: not done" in errors and "no CelebA there" in errors and "list_eval_partition" in errors
    assert "samplers-lsun: not done" in errors


def test_another_command_in_the_same_folder_is_refused(driver, capsys, tmp_path):
    words = ["samplers-celeba", "--scale", "small", "--out", str(tmp_path), "--data_path"]
    assert driver.main([*words, str(tmp_path / "nothing")]) == 1
    assert driver.main([*words, str(tmp_path / "other")]) == 1  # nothing was begun: the command may change
    assert capsys.readouterr().err.count("no CelebA there") == 2
    (tmp_path / "runs" / "celeba-sngan").mkdir()
    assert driver.main([*words, str(tmp_path / "third")]) == 1
    assert "begun with another command" in capsys.readouterr().err
    assert (tmp_path / "runs" / "celeba-sngan").is_dir()


def test_an_unknown_row_is_refused(driver, capsys):
    with pytest.raises(SystemExit, match="2"):
        driver.main(["fig-9"])
    assert "no row fig-9; rows: fid-cifar10-sngan" in capsys.readouterr().err
