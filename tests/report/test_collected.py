"""What a report collects of a run: the right images and figures, and no code that nobody named."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gebm.checkpoints import newest_checkpoint
from gebm.cli import main
from gebm.commands import report as command
from gebm.commands.report import code_of, collect, write_report
from gebm.config import Config
from gebm.data import at_random, from_uint8, load_images
from gebm.model import GEBM

OWN = """
from pathlib import Path
from gebm.data import labelled_digits
from gebm.metrics.features import Pixels
from gebm.networks import BASES
Path("ran").touch()
base = BASES["dcgan"]
def data(data_path, image_size):
    images, _ = labelled_digits()
    return images[:-400], images[-400:]
def features(weights, data_path, cache_dir):
    return Pixels()
"""


def change(file: Path, **flags: object) -> None:
    text = file.read_text()
    for flag, value in flags.items():
        text, n = re.subn(rf"(?m)^{flag}: .*$", f"{flag}: {value}", text)
        assert n == 1
    file.write_text(text)


def own_base(run: Path, named: bool) -> None:
    """A run whose weights and the configuration beside them name a base by code; its own does if `named`."""
    checkpoint = newest_checkpoint(run)
    model = GEBM.load(checkpoint)
    model.architecture = replace(model.architecture, base="own:base")
    model.save(checkpoint)
    (checkpoint / "manifest.json").unlink()
    for folder in [checkpoint, run] if named else [checkpoint]:
        change(folder / "config.yaml", g_model="own:base")


# what is code -> (the run, how it comes to name it)
NAMED = {
    "own:data": ("trained", lambda runs, at: change(runs / "trained" / "config.yaml", dataset="own:data")),
    "own:data, of what was sampled from": ("sampled", lambda runs, at: change(at / "config.yaml", dataset="own:data")),
    "own:base, of the weights alone": ("trained", lambda runs, at: own_base(runs / "trained", False)),
    "own:features": (
        "sampled",
        lambda runs, at: change(runs / "sampled" / "config.yaml", fid_features="own:features", fid_samples=2000),
    ),
}


def test_samples_compared_with_another_data_set_say_what_was_trained_on(runs):
    change(runs / "sampled" / "config.yaml", dataset="folder:other")
    assert main(["report", str(runs / "sampled")]) == 0
    page = (runs / "sampled" / "report.html").read_text()
    for name, value in (("dataset", "folder:other"), ("trained on", "digits")):
        assert f">{name}</th><td>{value}<" in page


@pytest.mark.parametrize("case", NAMED)
def test_code_that_a_run_names_is_run_only_if_the_user_names_it(made, runs, tmp_path, monkeypatch, capsys, case):
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own", raising=False)
    sampled = runs / "sampled" / "config.yaml"
    sampled.write_text(sampled.read_text().replace(str(made), str(runs)))  # from the copy of the pair
    code, (run, name_it) = case.partition(",")[0], NAMED[case]
    name_it(runs, newest_checkpoint(runs / "trained"))
    assert main(["report", str(runs / run)]) == 0
    warned = [line for line in capsys.readouterr().out.splitlines() if "could not show" in line]
    assert len(warned) == 1 and code in warned[0]
    assert not Path("ran").exists()
    assert "Not shown here" in (runs / run / "report.html").read_text()
    assert main(["report", str(runs / run), code]) == 0
    assert Path("ran").exists()
    assert "Not shown here" not in (runs / run / "report.html").read_text()


def test_networks_that_a_run_names_are_imported_but_behind_from_untrusted(runs, tmp_path, monkeypatch, capsys):
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own", raising=False)
    run = runs / "trained"
    own_base(run, True)
    assert main(["report", "--from_untrusted", str(run)]) == 0
    assert not Path("ran").exists() and "Not shown here" in (run / "report.html").read_text()
    capsys.readouterr()
    assert main(["report", str(run)]) == 0
    assert f"code: own:base, which {run}/config.yaml names; --from_untrusted keeps such code out" in (
        capsys.readouterr().out
    )
    assert Path("ran").exists() and "Not shown here" not in (run / "report.html").read_text()


class WithoutFloor(torch.nn.Module):
    def forward(self, x):
        return x.flatten(1).sum(1)


def test_an_energy_without_a_floor_is_not_called_clamped(made):
    config = Config.load(made / "trained" / "config.yaml")
    model = GEBM.load(newest_checkpoint(made / "trained"))
    energy = lambda config, model: dict(command._about(made / "trained", config, model))["energy"]  # noqa: E731
    assert energy(config, model).endswith(", clamped to E >= -10")
    assert energy(config, None).endswith(", clamped to E >= -10")
    assert "clamped" not in energy(replace(config, no_trunc=True), model)
    assert "clamped" not in energy(replace(config, d_model="own:energy"), None)
    model.energy = WithoutFloor()
    assert "clamped" not in energy(config, model)


def test_folders_archives_and_the_hub_are_no_code(runs):
    for dataset in ("folder:gone", "npz:gone.npz"):
        change(runs / "trained" / "config.yaml", dataset=dataset)
        text = write_report(runs / "trained").read_text()
        assert "gone" in text and "is code" not in text


def test_code_of_a_configuration():
    config = Config(dataset="own:data", fid_features="own:features", g_model="own:base", d_model="own:energy")
    assert code_of(config) == {"own:data", "own:features", "own:base", "own:energy"}
    assert code_of(Config()) == set()


@pytest.mark.parametrize("most", [50_000, 300])
def test_copies_of_training_images_are_found_and_shown(runs, monkeypatch, most):
    run, train = runs / "sampled", load_images("digits").train
    with np.load(run / "samples.npz") as archive:
        arrays = dict(archive)
    n = len(arrays["samples"])
    places = at_random(np.arange(len(train)), most)
    copied = np.random.RandomState(1).choice(places, n, replace=False)
    arrays["samples"] = train[copied]
    np.savez(run / "samples.npz", **arrays)
    monkeypatch.setattr(command, "SEARCHED", most)
    report = collect(run, Config.load(run / "config.yaml"))
    near = report.neighbours
    of_samples, of_test = near.distances["GEBM samples"][1], near.distances["test images"][1]
    assert len(of_samples) == n and (of_samples == 0).all()
    assert len(of_test) == 400 and of_test.min() > 0
    assert near.closeness.probability == 1
    assert len(near.pairs) == 16
    for distance, sample, image in near.pairs:
        assert distance == 0 and np.array_equal(sample, image)
    for (_, sample, _), place in zip(near.pairs[near.closest :], copied):
        assert np.array_equal(sample, train[place])
    text = write_report(run).read_text()
    few = f"300 of the {len(train)} training images, chosen at random"
    assert (few in text) == (most == 300) and f"the {len(train)} training images" in text


def test_energies_are_those_of_the_images_they_are_named_after(runs, monkeypatch):
    monkeypatch.setattr(command, "IMAGES", 10_000)  # all of the images
    run, data = runs / "trained", load_images("digits")
    found = collect(run, Config.load(run / "config.yaml")).energies
    model = GEBM.load(newest_checkpoint(run))
    for name, role, images in (("train images", "train", data.train), ("test images", "test", data.test)):
        with torch.no_grad():
            energies = model.energy(from_uint8(torch.tensor(images))).numpy()
        assert found[name][0] == role
        assert np.allclose(np.sort(found[name][1]), np.sort(energies), atol=1e-4)
    assert len(found["train images"][1]) > len(found["test images"][1])


def test_figures_of_a_training_are_the_last_of_its_last_stage(made):
    rows = [json.loads(line) for line in (made / "trained" / "stats.jsonl").read_text().splitlines()]
    refine = [row for row in rows if row["stage"] == "refine"]
    assert rows[-1] in refine and any("base_loss" in row for row in rows)
    text = (made / "trained" / "report.html").read_text()
    section = re.search(r"<h2>Figures</h2>.*?</section>", text, re.DOTALL)[0]
    shown = dict(re.findall(r"<th[^>]*>([^<]*)</th><td>([^<]*)</td>", section))
    assert "base_loss" not in shown and "lr_generator" not in shown
    for key in ("energy_loss", "kale_donsker_varadhan_test"):
        assert shown[key] == f"{[row[key] for row in refine if key in row][-1]:.4g}"
    assert f"of the refinement steps, which ended at {refine[-1]['refine_step']}" in section
