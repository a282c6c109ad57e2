import json
import math
import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from gebm import files
from gebm.errors import InputError
from gebm.files import alone, atomic_folder, atomic_write, naming, remove_folder, sweep, write_json


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


def in_a_process(function, *arguments) -> int:
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    process.join()
    return process.exitcode


def killed_in(context, path) -> None:
    with context(path) as temporary:
        (temporary / "a" if temporary.is_dir() else temporary).write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_kill_leaves_is_swept(tmp_path):
    for context, name in ((atomic_folder, "x"), (atomic_write, "y")):
        assert in_a_process(killed_in, context, tmp_path / name) == -signal.SIGKILL
    (tmp_path / ".mine.tmp").write_text("not of these names")
    os.mkfifo(tmp_path / ".z.01234567.tmp")  # which must not be waited for
    assert len(names(tmp_path)) == 4
    sweep(tmp_path)
    assert names(tmp_path) == [".mine.tmp", ".z.01234567.tmp"]


@pytest.mark.parametrize("context", [atomic_folder, atomic_write])
def test_what_a_kill_leaves_is_swept_by_who_writes_the_same_again(tmp_path, context):
    for name in ("x", "y"):
        assert in_a_process(killed_in, context, tmp_path / name) == -signal.SIGKILL
    with context(tmp_path / "x") as mine, context(tmp_path / "x") as other:
        assert set(names(tmp_path)) > {mine.name, other.name} and len(names(tmp_path)) == 3  # and what is of y
    assert [name for name in names(tmp_path) if name.endswith(".tmp")][0].startswith(".y.")


def killed_at_the_start(path) -> None:
    with atomic_folder(path):
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_kill_leaves_empty_is_swept_with_others_there(tmp_path):
    assert in_a_process(killed_at_the_start, tmp_path / "x") == -signal.SIGKILL
    assert len(names(tmp_path)) == 1
    sweep(tmp_path, others=True)
    assert names(tmp_path) == []


@pytest.mark.parametrize("module, name", [(files.os, "open"), (files, "lock_descriptor")])
def test_a_folder_swept_before_it_was_held_is_made_anew(tmp_path, monkeypatch, module, name):
    function = getattr(module, name)
    with monkeypatch.context() as first:

        def swept(*arguments):
            first.undo()
            sweep(tmp_path, others=True)
            assert names(tmp_path) == []
            return function(*arguments)

        first.setattr(module, name, swept)
        with atomic_folder(tmp_path / "x") as temporary:
            fill(temporary, "a")
    assert names(tmp_path) == ["x"] and names(tmp_path / "x") == ["a"]


def test_what_others_are_at_work_on_is_not_swept_with_them_there(tmp_path):
    assert in_a_process(killed_in, atomic_folder, tmp_path / "x") == -signal.SIGKILL
    with atomic_folder(tmp_path / "y") as mine, atomic_write(tmp_path / "z") as file:
        fill(mine, "a")
        file.write_text("b")
        assert in_a_process(sweep, tmp_path, True) == 0
        assert names(tmp_path) == sorted([mine.name, file.name])
    assert names(tmp_path) == ["y", "z"]


def test_a_file_swept_before_it_was_held_is_made_anew(tmp_path, monkeypatch):
    lock = files.lock_descriptor
    with monkeypatch.context() as first:

        def swept(*arguments):
            first.undo()
            sweep(tmp_path)
            assert names(tmp_path) == []
            return lock(*arguments)

        first.setattr(files, "lock_descriptor", swept)
        with atomic_write(tmp_path / "x") as temporary:
            temporary.write_text("a")
    assert names(tmp_path) == ["x"] and (tmp_path / "x").read_text() == "a"


def test_what_was_about_to_be_replaced_is_given_back(tmp_path):
    with atomic_folder(tmp_path / "x") as temporary:
        fill(temporary, "old")

    def killed_between_the_renames():
        rename = os.rename

        def die(source, target):
            if str(target) == str(tmp_path / "x"):
                os.kill(os.getpid(), signal.SIGKILL)
            rename(source, target)

        files.os.rename = die
        with atomic_folder(tmp_path / "x") as temporary:
            fill(temporary, "new")

    assert in_a_process(killed_between_the_renames) == -signal.SIGKILL
    assert not (tmp_path / "x").exists()
    sweep(tmp_path)
    assert names(tmp_path) == ["x"] and names(tmp_path / "x") == ["old"]


def test_a_folder_is_removed_under_another_name(tmp_path, monkeypatch):
    with atomic_folder(tmp_path / "x") as temporary:
        fill(temporary, "a", "b")
    seen = []
    monkeypatch.setattr(files.shutil, "rmtree", lambda path, **_: seen.append((Path(path).name, names(tmp_path))))
    remove_folder(tmp_path / "x")  # killed here, it would be seen by `sweep` alone
    ((name, there),) = seen
    assert there == [name] and name.endswith(".tmp")


def test_a_folder_of_one_process(tmp_path):
    def other(code):
        try:
            with alone(tmp_path):
                os._exit(0)
        except InputError as error:
            os._exit(code if f"process {os.getppid()} on {files.socket.gethostname()} is at work" in str(error) else 9)

    with alone(tmp_path):
        assert in_a_process(other, 5) == 5
    assert in_a_process(other, 5) == 0


def test_a_child_that_outlives_its_parent_does_not_hold_the_lock(tmp_path):
    reading, writing = os.pipe()

    def killed_with_a_child():
        with alone(tmp_path):
            if not os.fork():
                os.close(writing)
                os.read(reading, 1)
                os._exit(0)
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_a_process(killed_with_a_child) == -signal.SIGKILL
    with alone(tmp_path):
        os.close(writing)  # at which the child ends
    os.close(reading)


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    def killed():
        with alone(tmp_path):
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_a_process(killed) == -signal.SIGKILL
    assert (tmp_path / ".lock").read_text()  # its text stays, and counts for nothing
    with alone(tmp_path):
        pass


def test_a_file_system_without_locks(tmp_path, monkeypatch, caplog):
    def none(*arguments, **options):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(files.FileLock, "acquire", none)
    monkeypatch.setattr(files, "lock_descriptor", none)
    with alone(tmp_path):
        assert "no lock can be had here (No locks available)" in caplog.text
    with atomic_folder(tmp_path / "x") as temporary:
        fill(temporary, "a")
        sweep(tmp_path, others=True)  # which it cannot tell from a dead process's, and leaves
    assert names(tmp_path / "x") == ["a"]


def test_json_has_null_for_what_is_no_number(tmp_path):
    write_json(tmp_path / "a.json", {"a": [1.5, math.inf, {"b": math.nan}], "c": (2, None)})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1.5, None, {"b": None}], "c": [2, None]}


def test_failed_writes_name_their_file(tmp_path):
    with pytest.raises(OSError) as error, naming(tmp_path / "a"):
        raise OSError(28, "No space left on device")
    assert error.value.filename == str(tmp_path / "a")
    with pytest.raises(OSError) as error, atomic_folder(tmp_path / "b") as temporary:
        raise OSError(28, "No space left on device", str(temporary / "c"))
    assert error.value.filename == str(tmp_path / "b" / "c")  # not the name it had on its way
