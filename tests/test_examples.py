"""The examples run as a user runs them, and what they print is true."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.mark.slow
def test_refine_any_generator(tmp_path):
    done = subprocess.run(
        [sys.executable, EXAMPLES / "refine_any_generator.py", "--out", tmp_path / "out", "--steps", "500"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(EXAMPLES.parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    names = ["base", "refined", "threes-base", "threes-critic", "threes-critic-and-energy"]
    pictures = {name: np.asarray(Image.open(tmp_path / "out" / f"{name}.png")) for name in names}
    assert len({picture.tobytes() for picture in pictures.values()}) == len(names)

    out = done.stdout
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
