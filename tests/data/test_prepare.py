"""`gebm data prepare`."""

import re

import numpy as np
import pytest

from gebm.cli import main
from gebm.data import load_images


@pytest.mark.parametrize("name", ["CelebA", "LSUN"])
def test_says_what_was_made_and_where(name, tmp_path, capsys, request):
    request.getfixturevalue(f"write_{name.lower()}")(tmp_path)
    assert main(["data", "prepare", "--dataset", name, "--data_path", str(tmp_path), "--image_size", "16"]) == 0
    data = load_images(name.lower(), tmp_path, 16)
    folder = tmp_path / "cache" / f"{name.lower()}-{data.key}"
    told, *rest = capsys.readouterr().out.splitlines()
    lines = [line for line in rest if "resized" not in line]
    assert told == f"{name.lower()}: images of their own sizes are resized to 16 x 16 (--image_size)"
    for line, split, images in zip(lines, ("train", "test"), (data.train, data.test), strict=True):
        assert line == f"{name.lower()} {split}: {len(images)} images (3, 16, 16), 0.0 MB, in {folder}"


def test_paths_of_imagenet32(tmp_path, write_imagenet32):
    _, test = write_imagenet32(tmp_path / "elsewhere", "_npz")
    train_path, test_path = (str(tmp_path / "elsewhere" / f"Imagenet32_{split}_npz") for split in ("train", "val"))
    paths = ["--imagenet_train_path", train_path, "--imagenet_test_path", test_path]
    assert main(["data", "prepare", "--dataset=Imagenet32", "--data_path", str(tmp_path), *paths]) == 0
    (file,) = tmp_path.glob("cache/imagenet32-*/test.npy")
    assert np.array_equal(np.load(file), test)


def test_what_needs_no_preparation(capsys):
    assert main(["data", "prepare", "--dataset", "digits"]) == 0
    assert re.search(r"digits test: 400 images \(1, 8, 8\), 0.0 MB, in memory", capsys.readouterr().out)


@pytest.mark.parametrize(
    "argv, says",
    [
        (["--dataset", "digits"], "gebm data: write gebm data prepare --dataset NAME"),
        (["prepare", "digits"], "gebm data prepare digits: write"),
        (["prepare", "--dataset", "lsun", "--data_path", "nowhere"], "nowhere/lsun: no LSUN bedrooms there"),
    ],
)
def test_wrong_words(argv, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["data", *argv]) == 2
    assert says in capsys.readouterr().err and not list(tmp_path.iterdir())
