"""The examples run as a user runs them, and what they print is true."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def run(example: Path, folder: Path, *flags: str) -> str:
    """What an example prints, run in a folder."""
    done = subprocess.run(
        [sys.executable, example, "--out", "out", *flags],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(EXAMPLES.parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in folder.iterdir()] == ["out"]  # nothing is written elsewhere
    return done.stdout


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_runs_small(example, tmp_path):
    printed = run(example, tmp_path, "--tiny")
    assert "nan" not in re.sub("R-hat .*", "", printed).lower().split()  # of which ten steps have none
    pictures = sorted((tmp_path / "out").glob("*.png"))
    assert pictures and "in out/\n" in printed
    for path in pictures:
        assert np.asarray(Image.open(path).convert("L")).std() > 5
    words = ast.get_docstring(ast.parse(example.read_text()))
    assert f"python examples/{example.name} --out " in words
    assert f"[`{example.name}`](../examples/{example.name})" in (EXAMPLES.parent / "docs" / "tutorials.md").read_text()


def test_samplers_compared(tmp_path):
    printed = run(EXAMPLES / "samplers_compared.py", tmp_path)
    truth = float(re.search(r"([\d.]+)% of the mass on the right", printed)[1])
    rows = {row[:20].strip(): row[20:].split() for row in printed.splitlines() if row.endswith("s.e.")}
    assert len(rows) == 7
    for name in ("HMC, L 5, tuned", "SMC"):  # exact, and there
        share, off = float(rows[name][5].rstrip("%")), float(rows[name][6])
        assert abs(off) < 4 and abs(share - truth) < 6
    trapped = rows["Langevin, h 0.002"]
    assert abs(float(trapped[5].rstrip("%")) - truth) > 15 and float(trapped[2]) > 1.5  # R-hat of z1 says so
    assert float(rows["Langevin, h 0.05"][4]) > float(rows["HMC, L 5, tuned"][4]) + 1  # the bias of a long step


@pytest.mark.slow
def test_refine_any_generator(tmp_path):
    out = run(EXAMPLES / "refine_any_generator.py", tmp_path)
    assert "Better than its base on pixels and random-conv" in out and "refined samples" not in out
    assert "HMC(step_size=0.4, leapfrog=5" in out and "beta 1, 200 steps" in out and ": draws from the model)" in out
    pictures = [np.asarray(Image.open(tmp_path / "out" / f"{name}.png")) for name in ("base", "refined")]
    assert (pictures[0] != pictures[1]).any()


@pytest.mark.slow
def test_critic_as_energy(tmp_path):
    out = run(EXAMPLES / "critic_as_energy.py", tmp_path)
    rows = re.findall(r"^(\S+): (\d+)% threes .* mean ink ([-\d.]+)$", out, re.M)
    assert [name for name, *_ in rows] == ["base", "threes", "base", "bold-threes"]
    (base, _), (threes, ink), _, (bold, bold_ink) = [(int(share), float(ink)) for _, share, ink in rows]
    assert base < 20 and threes > 50 and bold > 50 and bold_ink > ink + 0.05
