import json
import multiprocessing
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from gebm.data import cache
from gebm.data.cache import Images, cached, from_array
from gebm.errors import InputError
from gebm.files import check_writable

ARRAYS = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1), np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1)


def build():
    return tuple(map(from_array, ARRAYS))


def never():
    raise InputError("built again")


def test_built_once_and_mapped(tmp_path):
    train, test, key = cached(tmp_path, "a b:c", {"size": 8}, build)
    assert np.array_equal(train, ARRAYS[0]) and np.array_equal(test, ARRAYS[1])
    assert isinstance(train, np.memmap) and not train.flags.writeable
    (folder,) = (tmp_path / "cache").iterdir()
    assert folder.name == f"a-b-c-{key}"
    assert json.loads((folder / "meta.json").read_text())["size"] == 8
    assert cached(tmp_path, "a b:c", {"size": 8}, never)[2] == key
    assert cached(tmp_path, "a b:c", {"size": 9}, build)[2] != key


def test_of_two_that_race_one_builds_and_the_other_waits(tmp_path, caplog):
    builds = []

    def slow():
        builds.append(1)
        time.sleep(0.2)  # the other one comes meanwhile
        return build()

    with ThreadPoolExecutor(2) as pool:
        sums = pool.map(lambda _: cached(tmp_path, "x", {}, slow)[0].sum(), range(2))
    assert list(sums) == [15, 15] and len(builds) == 1
    assert len(list((tmp_path / "cache").iterdir())) == 1


# --- interruptions ----------------------------------------------------------------------------------------------------


MANY = np.random.default_rng(0).integers(256, size=(23, 3, 2, 2), dtype=np.uint8)


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(cache, "CHUNK", 4)


def images(array, asked=None, die=None):
    """The images of an array; notes where it was asked to start, and dies at image number `die` in its own way."""

    def blocks(start):
        if asked is not None:
            asked.append(start)
        for i in range(start, len(array), 4):
            if die and i >= die[0]:
                die[1]()
            yield array[i : i + 4]

    return Images(array.shape, blocks)


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("split", [0, 1])
@pytest.mark.parametrize("place", [0, 4, 12, 20])
def test_a_killed_build_goes_on_to_the_same_bits(place, split, small_chunks, tmp_path):
    def killed():
        splits = [images(MANY), images(MANY[::-1])]
        splits[split] = images((MANY, MANY[::-1])[split], die=(place, kill))
        cached(tmp_path / "a", "x", {}, lambda: splits)

    process = multiprocessing.get_context("fork").Process(target=killed)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    (left,) = (tmp_path / "a" / "cache").iterdir()
    assert left.name.endswith(".partial")
    asked = []
    train, test, key = cached(tmp_path / "a", "x", {}, lambda: (images(MANY, asked), images(MANY[::-1], asked)))
    assert np.array_equal(train, MANY) and np.array_equal(test, MANY[::-1])
    assert asked[split] == max(0, place - 4)  # the last chunk is not trusted: the power may have failed
    (folder,) = (tmp_path / "a" / "cache").iterdir()
    cached(tmp_path / "b", "x", {}, lambda: (from_array(MANY), from_array(MANY[::-1])))
    for file in ("train.npy", "test.npy", "meta.json"):
        assert (folder / file).read_bytes() == (tmp_path / "b" / "cache" / folder.name / file).read_bytes()


def test_the_last_chunk_of_a_power_cut_is_written_again(small_chunks, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path, "x", {}, lambda: (images(MANY, die=(12, interrupt)), images(MANY)))
    (path,) = tmp_path.rglob("train.npy")
    with open(path, "r+b") as file:
        file.seek(-4 * MANY[0].size, os.SEEK_END)
        file.write(bytes(4 * MANY[0].size))  # what a file system may leave of data that was not synchronised
        file.write(b"x")  # and a part of an image
    assert np.array_equal(cached(tmp_path, "x", {}, lambda: (images(MANY), images(MANY)))[0], MANY)


def interrupt():
    raise KeyboardInterrupt


def bad_source():
    raise InputError("image 8 is damaged")


def test_bad_input_in_the_middle_leaves_nothing(small_chunks, tmp_path):
    with pytest.raises(InputError, match="image 8"):
        cached(tmp_path / "data", "x", {}, lambda: (images(MANY, die=(8, bad_source)), images(MANY)))
    assert not (tmp_path / "data").exists()


def test_a_source_that_shrinks_meanwhile(small_chunks, tmp_path):
    with pytest.raises(InputError, match="x train: 20 images of 23 read; did the files change"):
        cached(tmp_path, "x", {}, lambda: (Images(MANY.shape, images(MANY[:20]).blocks), images(MANY)))
    assert list(tmp_path.iterdir()) == []


def test_full_disk_keeps_what_is_there(small_chunks, tmp_path, monkeypatch):
    def full(handle):
        if written.append(handle) or len(written) > 3:
            raise OSError(28, "No space left on device")

    written = []
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left on device, free some") as error:
        patch.setattr(os, "fsync", full)
        cached(tmp_path, "x", {}, lambda: (images(MANY), images(MANY)))
    assert error.value.filename.endswith("train.npy")
    asked = []
    cached(tmp_path, "x", {}, lambda: (images(MANY, asked), images(MANY, asked)))
    assert asked == [8, 0]


def test_a_failed_build_leaves_nothing(tmp_path):
    with pytest.raises(InputError, match="built again"):
        cached(tmp_path / "data", "x", {}, never)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_damaged_cache(damage, tmp_path):
    cached(tmp_path, "x", {}, build)
    (path,) = tmp_path.rglob("train.npy")
    path.unlink() if damage == "remove" else path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(InputError, match=f"{path.parent}: damaged cache .*; delete this folder") as error:
        cached(tmp_path, "x", {}, never)
    assert "\n" not in str(error.value)


def test_unwritable_data_path_is_told_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written .* --data_path"):
        cached(tmp_path / "file" / "data", "x", {}, never)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_read_only_folder(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot be written"):
        check_writable(tmp_path / "cache", "--data_path")
    tmp_path.chmod(0o700)
