"""Which files of a folder are its images, how they are split, and what is said of the rest."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gebm.data import load_images
from gebm.errors import InputError


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def pictures(folder: str | Path, levels, suffix: str = ".png") -> Path:
    """Grey pictures, each of one level, which names it too."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for level in levels:
        Image.new("L", (8, 8), level).save(Path(folder) / f"{level:03}{suffix}")
    return Path(folder)


def levels_of(root: str = "in") -> tuple[list[int], list[int]]:
    """The levels in the train and in the test split."""
    data = load_images(f"folder:{root}", "data", 8)
    return tuple([int(level) for level in split[:, 0, 0, 0]] for split in (data.train, data.test))


def together(root: str = "in") -> list[int]:
    train, test = levels_of(root)
    return sorted(train + test)


# --- hidden folders ---------------------------------------------------------------------------------------------------

CLUTTER = [".ipynb_checkpoints", ".thumbnails", "@eaDir", "__MACOSX", ".Trash-1000", "$RECYCLE.BIN", "#recycle"]


@pytest.mark.parametrize("place", ["in", "in/cats"])
@pytest.mark.parametrize("name", CLUTTER)
def test_hidden_folders_are_left_out_with_a_count(name, place, caplog):
    pictures("in", range(10)), pictures("in/cats", range(10, 20)), pictures(f"{place}/{name}/deep", range(100, 107))
    assert together() == list(range(20))
    assert f"in: left out 7 images in {name}" in caplog.text


def test_hidden_files_are_left_out_with_a_count(caplog):
    pictures("in", range(10))
    Path("in/._003.png").write_bytes(b"what macOS leaves")
    assert together() == list(range(10))
    assert "in: left out 1 image in hidden files" in caplog.text


def test_a_folder_in_a_hidden_one_is_read_where_it_is_named():
    pictures(".cache/in", range(10))
    assert together(".cache/in") == list(range(10))


def test_hidden_folders_within_the_splits(caplog):
    pictures("in/train", range(10)), pictures("in/test", range(10, 14))
    pictures("in/train/.ipynb_checkpoints", range(10, 14))
    assert levels_of() == (list(range(10)), list(range(10, 14)))
    assert "left out 4 images in .ipynb_checkpoints" in caplog.text


# --- links ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["/absolute", "../elsewhere"])
def test_linked_folders_are_followed(target, caplog):
    pictures("in/cats", range(20)), pictures("elsewhere/deep", range(20, 40))
    Path("in/dogs").symlink_to(Path("elsewhere").absolute() if target == "/absolute" else target)
    assert together() == list(range(40))
    assert "left out" not in caplog.text


def test_linked_splits_and_linked_files():
    pictures("a", range(10)), pictures("b", range(10, 14))
    Path("in").mkdir()
    Path("in/train").symlink_to("../a")
    Path("in/test").mkdir()
    for file in Path("b").iterdir():
        (Path("in/test") / file.name).symlink_to(Path("../..") / file)
    assert levels_of() == (list(range(10)), list(range(10, 14)))


def test_a_link_in_a_linked_folder_is_followed_and_a_new_file_there_noticed():
    pictures("in", range(10)), pictures("a", range(10, 20)), pictures("b", range(20, 30))
    Path("in/a").symlink_to("../a")
    Path("a/b").symlink_to("../b")
    assert together() == list(range(30))
    pictures("b", [99])
    assert together() == [*range(30), 99]


@pytest.mark.parametrize(
    "links",
    [
        {"in/again": "."},
        {"in/cats/up": ".."},
        {"in/up": "../.."},
        {"in/cats/dogs": "../dogs", "in/dogs/cats": "../cats"},
        {"in/out": "../out", "out/back": "../in"},
        {"in/out": "../out", "out/round": "."},
        {"in/itself": "itself"},
    ],
    ids=lambda links: " ".join(links),
)
def test_loops_are_refused_with_the_link_that_closes_them(links):
    for folder in ("in", "in/cats", "in/dogs", "out"):
        pictures(folder, range(4))
    for link, target in links.items():
        Path(link).symlink_to(target)
    with pytest.raises(
        InputError, match="itself: .*symbolic links|a link to a folder that it lies in; remove"
    ) as error:
        together()
    assert "\n" not in str(error.value) and not Path("data").exists()


def test_links_to_nothing_are_left_out_with_a_count(caplog):
    pictures("in", range(10))
    for name in ("cats", "010.png"):
        Path(f"in/{name}").symlink_to("/nowhere")
    assert together() == list(range(10))
    assert "in: left out 2 links that lead nowhere" in caplog.text


def test_what_is_no_file_is_left_out_with_a_count(caplog):
    pictures("in", range(10))
    os.mkfifo("in/010.png")
    assert together() == list(range(10))
    assert "in: left out 1 .png name that is no file" in caplog.text


def test_a_folder_that_cannot_be_read_is_refused(monkeypatch):
    pictures("in/cats", range(10)), pictures("in/dogs", range(10, 20))
    scandir = os.scandir

    def denied(path):
        if str(path).endswith("dogs"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(InputError, match="in/dogs: cannot be read .Permission denied.; .*"):
        together()


# --- splits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "train, test",
    [
        ("train", "test"),
        ("Train", "Test"),
        ("TRAIN", "test"),
        ("train", "val"),
        ("Train", "Val"),
        ("training", "testing"),
        ("train", "validation"),
        ("train", "valid"),
        ("training_set", "test_set"),
        ("Train-Images", "testset"),
        ("trn", "tst"),
        ("train", "val data"),
    ],
)
def test_folders_of_splits_are_recognised(train, test):
    pictures(f"in/{train}/cats", range(10)), pictures(f"in/{test}/cats", range(20, 24))
    assert levels_of() == (list(range(10)), list(range(20, 24)))


def test_of_test_and_validation_test_is_taken_and_the_other_counted(caplog):
    pictures("in/train", range(10)), pictures("in/test", range(20, 24)), pictures("in/val", range(30, 33))
    pictures("in", [99])
    assert levels_of() == (list(range(10)), list(range(20, 24)))
    assert "in: left out 3 images in val, 1 image outside train and test" in caplog.text


def test_a_split_by_its_bare_name_comes_before_a_longer_one(caplog):
    pictures("in/train", range(10)), pictures("in/test", range(20, 24)), pictures("in/train_images", range(30, 33))
    assert levels_of() == (list(range(10)), list(range(20, 24)))
    assert "in: left out 3 images in train_images" in caplog.text


def test_two_folders_of_one_split_are_refused():
    for name in ("train", "Train", "test"):
        pictures(f"in/{name}", range(4))
    if len(list(Path("in").iterdir())) < 3:
        pytest.skip("a file system that knows no capitals")
    with pytest.raises(InputError, match="in: holds both Train and train; keep one"):
        levels_of()


@pytest.mark.parametrize(
    "folders", [("train",), ("test", "other"), ("all/train", "all/test"), ("train2017", "val2017")]
)
def test_splits_that_are_not_used_are_told_of(folders, caplog):
    for i, folder in enumerate(folders):
        pictures(f"in/{folder}", range(10 * i, 10 * i + 10))
    assert together() == list(range(10 * len(folders)))
    assert re.search(f"in: not split by its folder ({'|'.join(folders)}), as", caplog.text)


def test_an_empty_split_is_refused():
    pictures("in/train", range(10)), pictures("in/val", [])
    with pytest.raises(InputError, match="in/val: 0 images in it, at least 1 needed"):
        levels_of()


# --- suffixes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jfif", ".JFIF", ".jpe", ".dib"])
def test_other_suffixes_of_the_same_formats(suffix):
    pictures("in", range(10))
    for level in (100, 101):
        Image.new("L", (8, 8), level).save(f"in/{level}{suffix}", "BMP" if suffix == ".dib" else "JPEG")
    assert together() == [*range(10), 100, 101]


def test_a_dib_without_the_header_of_a_file_is_read():
    for level in range(10):
        image = Image.new("L", (8, 8), level)
        Path("in").mkdir(exist_ok=True)
        image.save(f"in/{level}.dib", format="DIB")
    assert together() == list(range(10))


def test_all_that_is_left_out_is_in_one_line(caplog):
    pictures("in", range(10)), pictures("in/@eaDir", range(3))
    for i, suffix in enumerate([".heic", ".heic", ".txt", ".JSON", ""]):
        Path(f"in/file{i}{suffix}").write_text("no image")
    Path("in/.DS_Store").touch()  # no image, whatever its name
    assert together() == list(range(10))
    (line,) = (line for line in caplog.messages if "left out" in line)
    assert line == "in: left out 3 images in @eaDir, 2 .heic, 1 .txt, 1 .json, 1 file without a suffix"


# --- a tenth, by content ----------------------------------------------------------------------------------------------


def noise(folder: str, seeds) -> None:
    Path(folder).mkdir(exist_ok=True)
    for seed in seeds:
        pixels = np.random.default_rng(seed).integers(256, size=(8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(f"{folder}/{seed:04}.png")


def as_sets(data) -> tuple[set[bytes], set[bytes]]:
    return tuple({image.tobytes() for image in split} for split in (data.train, data.test))


def test_an_image_added_or_renamed_moves_none_of_the_others():
    noise("in", range(1, 301))
    train, test = as_sets(load_images("folder:in", "data", 8))
    assert 12 <= len(test) <= 48  # a tenth: 30, standard deviation 5.2
    noise("in", [0, *range(301, 311)])  # before all others, and after
    more_train, more_test = as_sets(load_images("folder:in", "data", 8))
    assert train <= more_train and test <= more_test and len(more_train | more_test) == 311
    for i, file in enumerate(sorted(Path("in").iterdir())):
        file.rename(f"in/{(i * 7) % 311:04}-other.png")
    assert as_sets(load_images("folder:in", "data", 8)) == (more_train, more_test)


def test_the_split_does_not_depend_on_the_size():
    noise("in", range(60))
    for size in (8, 16):
        data = load_images("folder:in", "data", size)
        assert len(data.test) == len(load_images("folder:in", "data", 8).test)


def test_images_that_are_the_same_lie_in_one_split():
    noise("in", range(60))
    for file in sorted(Path("in").iterdir()):
        (Path("in") / f"copy-{file.name}").write_bytes(file.read_bytes())
    train, test = as_sets(load_images("folder:in", "data", 8))
    assert not train & test and len(train | test) == 60


@pytest.mark.parametrize("count, least", [(2, 1), (3, 1), (4, 2), (5, 2), (12, 2)])
def test_both_splits_have_images_however_few(count, least):
    for first in (0, 100, 200):
        noise(f"in{first}", range(first, first + count))
        train, test = as_sets(load_images(f"folder:in{first}", "data", 8))
        assert len(train) + len(test) == count and min(len(train), len(test)) >= least


def test_images_exchanged_for_others_of_the_same_size_and_time_are_noticed():
    """As archives restore them."""
    for levels in (range(30), range(200, 230)):
        Path("in").mkdir(exist_ok=True)
        for number, level in enumerate(levels):
            file = Path(f"in/{number}.bmp")
            file.unlink(missing_ok=True)
            Image.fromarray(np.full((16, 16), level, np.uint8)).save(file)
            os.utime(file, (315532800,) * 2)
        assert load_images("folder:in", "data").train.max() >= levels[-10]
