"""`--from_untrusted`, watched by an audit hook: every file that a command opens lies where it may, nothing that lies in
the folder is imported, and nothing is asked of a network or of another program."""

import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from gebm.config import Config
from gebm.data import load_table
from gebm.data.units import save_units
from gebm.manifest import write_manifest
from gebm.model import GEBM, Architecture

ROOT = Path(__file__).resolve().parent.parent
# It lies in a folder of its own, as the script `gebm` does, so that the folder worked in is not on Python's path.
CHILD = """
import json, os, sys

seen, line = [], None


def watch(event, args):
    if line is None:
        return
    if event in ("open", "os.listdir", "os.scandir", "os.chdir") and isinstance(args[0], (str, bytes, os.PathLike)):
        seen.append((line, "file", os.path.realpath(os.fsdecode(args[0]))))
    elif event == "exec" and os.path.isabs(args[0].co_filename):
        seen.append((line, "code", os.path.realpath(args[0].co_filename)))
    elif event == "import":
        seen.extend((line, "path", os.path.realpath(entry)) for entry in sys.path)
    elif event.startswith(("socket.", "subprocess.", "os.exec", "os.posix_spawn", "os.system", "urllib")):
        seen.append((line, "asked", f"{event} {args[0] if event == 'subprocess.Popen' else ''}".strip()))


sys.addaudithook(watch)
from gebm.cli import main

codes = []
for number, (folder, argv) in enumerate(json.load(open(sys.argv[1]))):
    os.chdir(folder)
    line = number
    codes.append(main(argv))
    line = None
with open(sys.argv[1], "w") as file:
    json.dump({"codes": codes, "seen": seen}, file)
"""
TRAP = "raise SystemExit(99)\n"
OPTIONAL = ("opt_einsum", "tensorflow", "own", "numba", "pandas", "cupy", "triton", "evil")  # that libraries look for
SMALL = "--device -2 --n_samples 4 --num_sampler_steps 2 --sample_b_size 4".split()


def make_run(folder: Path, architecture: Architecture, config: Config) -> Path:
    """A run as somebody else would hand it on, with files of the names that Python looks for."""
    newest = folder / "checkpoints" / "joint-00000002"
    newest.mkdir(parents=True)
    GEBM.build(architecture).save(newest)
    for place in (folder, newest):
        config.save(place / "config.yaml")
    (newest / "training.json").write_text("{}")
    write_manifest(newest)
    set_traps(folder)
    return folder


def set_traps(folder: Path) -> None:
    for name in OPTIONAL:
        (folder / f"{name}.py").write_text(TRAP)


def commands(theirs: Path, rows: Path, work: Path) -> list[tuple[Path, list[str]]]:
    """Command lines and the folders that they are started in, of which the first is the run's own."""
    out = ["--log_dir", str(work / "runs")]
    distances = ["--eval_fid", "--fid_samples", "4", "--fid_features", "pixels"]
    return [
        (theirs, ["evaluate", "--from_untrusted", ".", "--device", "-2"]),
        (theirs, ["report", "--from_untrusted", "."]),
        (theirs / "checkpoints", ["sample", "--from_untrusted", "../", *SMALL, *out, "--log_name", "a", *distances]),
        (work, ["evaluate", str(theirs), "--from_untrusted", "../theirs", "--device", "-2", *distances]),
        (work, ["sample", "--from_untrusted", "../theirs", *SMALL, "--log_name", "b"]),
        (work, ["report", "../theirs", "--from_untrusted"]),
        (work, ["report", "runs/b"]),
        (work, ["score", "t.csv", "--from_untrusted", "../rows", "--device", "-2", "--partition_samples", "100"]),
        (work, ["evaluate", "--from_untrusted", "../rows", "--dataset", "csv:t.csv", "--device", "-2"]),
        (work, ["export", "runs/b", "out"]),
    ]


@pytest.fixture(scope="module")
def watched(tmp_path_factory) -> tuple[Path, list[list[str]], dict]:
    """The folder of all this, the command lines, and what the hook saw of them."""
    top = tmp_path_factory.mktemp("watched").resolve()
    for name in ("bin", "work", "home", "tmp"):
        (top / name).mkdir()
    np.savetxt(top / "work" / "t.csv", np.random.default_rng(0).normal(size=(60, 2)), delimiter=",")
    set_traps(top / "work")
    small = {"width": 0.05, "device": -2}
    digits = Config(**small, dataset="digits", g_model="dcgan", d_model="dcgan", Z_dim=3)
    theirs = make_run(top / "theirs", Architecture("dcgan", "dcgan", (1, 8, 8), 3, width=0.05), digits)
    table = Config(**small, dataset="csv:t.csv", g_model="nvp", d_model="mlp", Z_dim=2, num_blocks=1)
    rows = make_run(top / "rows", Architecture("nvp", "mlp", (2,), 2, width=0.05, blocks=1), table)
    save_units(rows, load_table(f"csv:{top / 'work' / 't.csv'}"))
    lines = commands(theirs, rows, top / "work")
    (top / "bin" / "gebm").write_text(CHILD)
    (top / "lines.json").write_text(json.dumps([(str(folder), argv) for folder, argv in lines]))
    home = {"HOME": str(top / "home"), "TMPDIR": str(top / "tmp"), "PYTHONPATH": str(ROOT)}
    home |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("XDG_", "MPL", "TORCH", "GEBM"))}
    command = [sys.executable, str(top / "bin" / "gebm"), str(top / "lines.json")]
    done = subprocess.run(command, env=kept | home, cwd=theirs, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((top / "lines.json").read_text())
    assert found["codes"] == [0] * len(lines), done.stderr
    return top, [argv for _, argv in lines], found


def may_open(path: str, top: Path) -> bool:
    """Whether a command may open a file: the run's, those that the user named, caches, and what Python itself needs."""
    folders = ("theirs", "rows", "work/data", "work/runs", "work/out", "tmp")
    caches = ("home/.cache", "home/.config", "home/.fonts", "home/.local/share/fonts")
    own = [top / name for name in (*folders, *caches)]
    named = [top / "work" / name for name in ("t.csv", "t.scores.csv", ".t.scores.csv", ".out.")]
    python = [
        ROOT / "gebm",
        ROOT / ".venv",
        ROOT / "gebm.egg-info",
        *map(Path, {sys.prefix, sys.base_prefix, *filter(is_packages, sys.path)}),
    ]
    system = [Path(name) for name in ("/proc", "/sys", "/etc", "/dev", "/usr", "/lib", "/var/cache/fontconfig")]
    if path in (str(ROOT), f"{top}/bin", f"{top}/bin/gebm", f"{top}/work") or path.startswith(tuple(map(str, named))):
        return True
    return any(path == str(place) or path.startswith(f"{place}/") for place in (*own, *python, *system))


def is_packages(entry: str) -> bool:
    return entry.endswith(("site-packages", "lib-dynload"))


def strange(seen: Iterable[tuple[int, str, str]], top: Path) -> dict[int, set[str]]:
    """What must not be among the events of each command line."""
    found = defaultdict(set)
    for line, kind, what in {tuple(event) for event in seen}:
        within = what.startswith((f"{top}/theirs", f"{top}/rows", f"{top}/work"))
        asked = kind == "asked" and what != "subprocess.Popen fc-list"  # by matplotlib, once, for its fonts
        if asked or (kind in ("code", "path") and within) or (kind == "file" and not may_open(what, top)):
            found[line].add(f"{kind} {what}")
    return found


def test_only_the_folder_and_what_the_user_names_is_opened_and_nothing_of_it_is_run(watched):
    top, lines, found = watched
    # Without the flag, as of one's own samples from their pair, one's own code is found where one works.
    seen = [event for event in found["seen"] if "--from_untrusted" in lines[event[0]] or event[1] != "path"]
    assert {" ".join(lines[line]): sorted(what) for line, what in strange(seen, top).items()} == {}


def test_the_hook_sees_what_is_read(watched):
    """Weights and configurations of each command, so that seeing nothing else means something."""
    top, lines, found = watched
    for number, argv in enumerate(lines):
        opened = {what for line, kind, what in found["seen"] if line == number and kind == "file"}
        assert any(what.endswith(("base.safetensors", "energy.safetensors")) for what in opened), argv
        assert any(what.endswith("config.yaml") for what in opened) or argv[0] == "score", argv
    assert any(kind == "code" for _, kind, _ in found["seen"])
    shutil.rmtree(top / "work" / "runs")


@pytest.mark.parametrize("event", [
    ("file", "/root/.ssh/id_rsa"), ("file", "{top}/work/own.py"), ("file", "{top}/other/config.yaml"),
    ("file", "{top}/home/x"), ("code", "{top}/theirs/opt_einsum.py"), ("path", "{top}/work"),
    ("asked", "socket.connect"),
])  # fmt: skip
def test_what_must_not_be_is_told(event, tmp_path):
    kind, what = event
    assert strange([(0, kind, what.format(top=tmp_path))], tmp_path)
