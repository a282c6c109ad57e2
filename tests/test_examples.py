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
    out = run(EXAMPLES / "refine_any_generator.py", tmp_path, "--steps", "500")
    names = ["base", "refined", "threes-base", "threes-critic", "threes-critic-and-energy"]
    pictures = {name: np.asarray(Image.open(tmp_path / "out" / f"{name}.png")) for name in names}
    assert len({picture.tobytes() for picture in pictures.values()}) == len(names)

    for words in ("400 held-out digits, 2000 samples each, 95 %", "HMC(step_size=0.4, leapfrog=5", "100 steps, beta 1"):
        assert words in out
    rows = re.findall(r"(base|GEBM|gain) ([-\d.]+) \(([-\d.]+) to ([-\d.]+)\)", out)
    distances = {name: [float(number) for number in numbers] for name, *numbers in rows}
    assert distances["GEBM"][2] < distances["base"][1]  # the intervals are apart
    assert distances["gain"][1] > 0
    # The chains are where importance sampling says that the model is.
    start, end, model, error = map(float, re.search(
        r"base ([-\d.]+), of the chains ([-\d.]+)\n.*importance, ([-\d.]+) \+- ([-\d.]+)", out
    ).groups())  # fmt: skip
    assert abs(end - model) < 4 * error + 0.1 < (start - model) / 2
    base, critic, both = (int(share) for share in re.findall(r"^  (?:base|critic|critic and energy) (\d+)%", out, re.M))
    assert base < 20 and critic > 50 and both > 50
