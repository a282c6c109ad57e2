import os

import pytest

from gebm import files
from gebm.files import atomic_folder, atomic_write


def names(folder) -> list[str]:
    return sorted(os.listdir(folder))


def test_write_appears_whole_at_the_end(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old" and temporary.parent == tmp_path
    assert path.read_text() == "new" and names(tmp_path) == ["a.txt"]
    with atomic_write(str(tmp_path / "b.txt")) as temporary:  # a text does, and there need be no older one
        temporary.write_text("x")
    assert names(tmp_path) == ["a.txt", "b.txt"]


def test_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    with pytest.raises(FileNotFoundError), atomic_write(path):
        pass  # nothing was written
    assert path.read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_two_writers_do_not_meet(tmp_path):
    with atomic_write(tmp_path / "a") as one, atomic_write(tmp_path / "a") as two:
        assert one != two
        one.write_text("1")
        two.write_text("2")
    assert (tmp_path / "a").read_text() == "1" and names(tmp_path) == ["a"]


def fill(folder, *contents: str) -> None:
    for content in contents:
        (folder / content).write_text(content)


def test_folder_appears_whole_at_the_end(tmp_path):
    path = tmp_path / "deep" / "run"  # parents are made
    with atomic_folder(path) as temporary:
        fill(temporary, "a", "b")
        assert not path.exists()
    assert names(path) == ["a", "b"] and names(path.parent) == ["run"]


def test_folder_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "run"
    with atomic_folder(path) as temporary:
        fill(temporary, "a", "b")
    with atomic_folder(path) as temporary:
        fill(temporary, "c")
        assert names(path) == ["a", "b"]
    assert names(path) == ["c"] and names(tmp_path) == ["run"]


def test_failed_folder_leaves_what_was_there(tmp_path):
    path = tmp_path / "run"
    with atomic_folder(path) as temporary:
        fill(temporary, "a")
    with pytest.raises(KeyboardInterrupt), atomic_folder(path) as temporary:
        fill(temporary, "b")
        raise KeyboardInterrupt
    assert names(path) == ["a"] and names(tmp_path) == ["run"]


def test_folder_that_cannot_take_its_name_leaves_what_was_there(tmp_path, monkeypatch):
    path, rename = tmp_path / "run", os.rename
    with atomic_folder(path) as temporary:
        fill(temporary, "a")

    def refuse_new(source, target):
        if str(target) == str(path) and "b" in names(source):
            raise OSError("no space")
        rename(source, target)

    monkeypatch.setattr(files.os, "rename", refuse_new)
    with pytest.raises(OSError, match="no space"), atomic_folder(path) as temporary:
        fill(temporary, "b")
    assert names(path) == ["a"] and names(tmp_path) == ["run"]


def test_folder_within_the_folder(tmp_path):
    with atomic_folder(tmp_path / "run") as temporary:
        (temporary / "png").mkdir()
        fill(temporary / "png", "a")
    assert names(tmp_path / "run" / "png") == ["a"]
