import json
import multiprocessing
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from gebm.data.cache import cached
from gebm.errors import InputError
from gebm.files import check_writable

ARRAYS = np.arange(6, dtype=np.uint8), np.arange(3, dtype=np.uint8)


def build():
    return ARRAYS


def never():
    raise AssertionError("built again")


def test_built_once_and_mapped(tmp_path):
    train, test, key = cached(tmp_path, "a b:c", {"size": 8}, build)
    assert np.array_equal(train, ARRAYS[0]) and np.array_equal(test, ARRAYS[1])
    assert isinstance(train, np.memmap) and not train.flags.writeable
    (folder,) = (tmp_path / "cache").iterdir()
    assert folder.name == f"a-b-c-{key}"
    assert json.loads((folder / "meta.json").read_text())["size"] == 8
    assert cached(tmp_path, "a b:c", {"size": 8}, never)[2] == key
    assert cached(tmp_path, "a b:c", {"size": 9}, build)[2] != key


def test_of_two_that_race_both_succeed(tmp_path):
    barrier = threading.Barrier(2)

    def slow():
        barrier.wait(timeout=20)  # both are building before either writes
        return ARRAYS

    with ThreadPoolExecutor(2) as pool:
        sums = pool.map(lambda _: cached(tmp_path, "x", {}, slow)[0].sum(), range(2))
    assert list(sums) == [15, 15]
    assert len(list((tmp_path / "cache").iterdir())) == 1


def killed(folder):
    class Killer:
        def __array__(self, *_, **__):
            os._exit(9)  # while test.npy is written, as SIGKILL would

    cached(folder, "x", {}, lambda: (ARRAYS[0], Killer()))


def test_what_a_killed_process_leaves_is_harmless(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=killed, args=(tmp_path,))
    process.start()
    process.join()
    (left,) = (tmp_path / "cache").iterdir()
    assert process.exitcode == 9 and left.name.endswith(".tmp")
    assert np.array_equal(cached(tmp_path, "x", {}, build)[0], ARRAYS[0])


def test_a_failed_build_leaves_nothing(tmp_path):
    with pytest.raises(AssertionError):
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


def test_full_disk(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(InputError, match="cannot be written .*No space left"):
        cached(tmp_path, "x", {}, build)
    assert list((tmp_path / "cache").iterdir()) == []
