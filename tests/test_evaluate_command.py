"""`gebm evaluate` on what is not a run: files and folders of images, and several subjects side by side."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gebm.cli import main
from gebm.config import Config
from gebm.data import load_images
from gebm.data.images import labelled_digits

FLAGS = ["--device", "-2", "--fid_features", "pixels", "--dataset", "digits"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write_folder(folder: str, images: np.ndarray) -> None:
    Path(folder).mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image[0]).save(f"{folder}/{i:04d}.png")


def found(*subjects: str) -> dict:
    assert main(["evaluate", *subjects, *FLAGS, "--json", "found.json"]) == 0
    return json.loads(Path("found.json").read_text())


def test_a_folder_and_a_file_of_the_same_images_agree():
    images = load_images("digits").train[:60]
    write_folder("images", images)
    np.savez("images.npz", samples=images)
    of = found("images", "images.npz")
    assert of["images"]["samples"] == of["images.npz"]["samples"]
    assert of["images"]["samples"]["n_fake"] == 60
    assert of["images"]["samples"]["metrics"]["FD(pixels)"].keys() == {"better", "gebm"}
    assert not Path("images/evaluation.json").exists()  # not a run's folder: nothing is written there


def test_what_a_folder_holds_beside_its_images_is_counted(capsys):
    write_folder("images", load_images("digits").train[:60])
    Path("images/._0003.png").write_bytes(b"what macOS leaves")
    Path("images/notes.txt").touch()
    for name in ("more", ".ipynb_checkpoints"):
        write_folder(f"images/{name}", load_images("digits").train[:5])
    Path("images/0007.png").rename("images/0007.jfif")  # what is in a file decides how it is read
    assert found("images")["images"]["samples"]["n_fake"] == 60
    says = "images: left out 5 images in .ipynb_checkpoints, 1 image in hidden files, 1 folder in it, 1 .txt"
    assert says in capsys.readouterr().out


def test_the_distance_is_to_the_split_that_is_named():
    data = load_images("digits")
    np.savez("train.npz", samples=data.train)
    for split, n in ("train", 1397), ("test", 400):
        assert main(["evaluate", "train.npz", *FLAGS, "--fid_split", split, "--json", "found.json"]) == 0
        of = json.loads(Path("found.json").read_text())["train.npz"]["samples"]
        assert (of["split"], of["n_real"]) == (f"digits {split}", n)
        assert (of["metrics"]["FD(pixels)"]["gebm"]["value"] < 1e-6) == (split == "train")  # they are those images


def test_side_by_side_the_better_samples_have_the_better_figures(capsys):
    digits, _ = labelled_digits()
    noise = np.random.RandomState(0).randint(0, 256, (300, 1, 8, 8)).astype(np.uint8)
    np.savez("good.npz", samples=digits[:300], base=noise)
    np.savez("bad.npz", samples=noise)
    of = {name: entry["samples"]["metrics"] for name, entry in found("good.npz", "bad.npz").items()}
    for name, entry in of["good.npz"].items():
        good, bad = entry["gebm"]["value"], of["bad.npz"][name]["gebm"]["value"]
        assert (good < bad) if entry["better"] == "lower" else (good > bad), name
        assert entry["base"]["value"] == pytest.approx(bad) and entry["gain"] == pytest.approx(abs(good - bad))
        low, high = entry["gebm"]["ci"]
        assert low <= good <= high
    out = capsys.readouterr().out
    header = next(line for line in out.splitlines() if "good.npz" in line)
    assert header.split() == "good.npz: base good.npz: GEBM bad.npz".split()


def test_the_same_subject_twice_is_shown_once(capsys):
    np.savez("images.npz", samples=load_images("digits").train[:120])
    assert list(found("images.npz", "./images.npz")) == ["images.npz"]
    assert "precision(pixels)" in capsys.readouterr().out


def test_what_needs_more_images_is_named(capsys):
    np.savez("few.npz", samples=load_images("digits").train[:10])
    of = found("few.npz")["few.npz"]["samples"]
    assert list(of["metrics"]) == ["FD(pixels)"] and "KD(pixels)" in of["left_out"]
    assert "with more images also KD(pixels), precision(pixels)" in capsys.readouterr().out


def test_code_that_a_run_names_is_not_run_by_its_word(capsys):
    Path("run").mkdir()
    Config(mode="sample", dataset="runpy:run_path").save("run/config.yaml")
    np.savez("run/samples.npz", samples=load_images("digits").train[:10])
    assert main(["evaluate", "run", *FLAGS[:4]]) == 2
    assert "made with the code --dataset runpy:run_path" in capsys.readouterr().err
    assert main(["evaluate", "run", *FLAGS]) == 0  # on another dataset


@pytest.mark.parametrize("place", ["missing/found.json", "."])
def test_json_goes_where_a_file_can_be(place, capsys):
    np.savez("images.npz", samples=load_images("digits").train[:10])
    assert main(["evaluate", "images.npz", *FLAGS, "--json", place]) == 2
    assert capsys.readouterr().err == f"gebm: error: --json {place}: must be a file in a folder that exists\n"


def test_json_overwrites_only_what_evaluate_wrote_there(capsys):
    np.savez("images.npz", samples=load_images("digits").train[:10])
    found("images.npz")
    found("images.npz")
    Path("empty.json").touch()
    assert main(["evaluate", "images.npz", *FLAGS, "--json", "empty.json"]) == 0
    Path("config.yaml").write_text("mode: train\n")
    Path("manifest.json").write_text('{"measure": null, "files": {"base.safetensors": {"bytes": 3}}}')
    Path("evaluation.json").write_text('{"kale": 1.0}')
    os.mkfifo("pipe")
    capsys.readouterr()
    for name in ("config.yaml", "manifest.json", "evaluation.json", "images.npz"):
        before = Path(name).read_bytes()
        assert main(["evaluate", "images.npz", *FLAGS, "--json", name]) == 2
        why = "is there and is not a file of figures; name another file, or overwrite it with --force"
        assert capsys.readouterr().err == f"gebm: error: --json {name}: {why}\n"
        assert Path(name).read_bytes() == before
    assert main(["evaluate", "images.npz", *FLAGS, "--json", "pipe", "--force"]) == 2
    assert "pipe: is no plain file" in capsys.readouterr().err
    assert main(["evaluate", "images.npz", *FLAGS, "--json", "evaluation.json", "--force"]) == 0
    assert json.loads(Path("evaluation.json").read_text()).keys() == {"images.npz"}


@pytest.mark.parametrize(
    "subjects, message",
    [
        ("images", "at least 2 images"),
        ("missing.npz", "no such run or samples"),
        ("small", "4 x 4 pixels, the data set's are 8 x 8"),
        ("damaged", "0001.png: not a usable image"),
        ("good.npz damaged", "0001.png: not a usable image"),
        ("unpaired.npz", "must have one shape"),
        ("good.npz missing", "missing: no such run"),
    ],
)
def test_wrong_subjects_are_one_line(subjects, message, capsys):
    digits, _ = labelled_digits()
    write_folder("images", digits[:1])
    write_folder("small", digits[:3, :, :4, :4])
    write_folder("damaged", digits[:3])
    Path("damaged/0001.png").write_bytes(b"\x89PNG nothing")
    np.savez("good.npz", samples=digits[:10])
    np.savez("unpaired.npz", samples=digits[:10], base=digits[:9])
    assert main(["evaluate", *subjects.split(), *FLAGS, "--json", "found.json"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error
    assert not Path("found.json").exists()
