"""The gallery of toys runs as a user runs it, and its figures say what it claims."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture(scope="module")
def gallery(tmp_path_factory) -> tuple[Path, dict[str, np.ndarray]]:
    """The folder of the pictures, and the table: label -> means and standard errors (columns, 2), NaN without them."""
    folder = tmp_path_factory.mktemp("gallery")
    done = subprocess.run(
        [sys.executable, EXAMPLES / "toy_gallery.py", "--tiny", "--out", folder / "out"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(EXAMPLES.parent), "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in folder.iterdir()] == ["out"]
    table = {}
    for label, cells in re.findall(r"^(\w+: .{1,30}?)  +(\S.*)$", done.stdout, re.M):
        numbers = [cell.split(" ± ") for cell in re.split(r"  +", cells)]
        table[label] = np.array([n if len(n) == 2 else (np.nan, np.nan) for n in numbers], float)
    return folder / "out", table


def test_pictures(gallery):
    folder, _ = gallery
    assert sorted(path.name for path in folder.iterdir()) == ["toy-gallery.png", "toy-line-flower.png"]
    for path in folder.iterdir():
        picture = np.asarray(Image.open(path).convert("RGB"))
        assert picture.shape[1] >= 900 and picture.std() > 10


def test_densities(gallery):
    _, table = gallery
    entropies = {
        "rings": 2.7445,  # of the ring, its width and the angle, less sigma^2 / 2 r^2 for the radius
        "pinwheel": math.log(5 * 2 * math.pi * math.e * 0.5 * 0.15),  # five blobs that hardly overlap
    }
    for name, entropy in entropies.items():
        value, se = table[f"{name}: test NLL, nats"][0]
        assert abs(value - entropy) < 4 * se + 0.02
    for name in ("moons", "rings", "pinwheel"):
        data, base, model = table[f"{name}: test NLL, nats"]
        kl_base, kl_model = table[f"{name}: KL from the data, nats"][1:]
        assert kl_base[0] == pytest.approx(base[0] - data[0], abs=0.002)
        assert kl_model[0] == pytest.approx(model[0] - data[0], abs=0.002)
        assert 0 < kl_model[0] < kl_base[0] - 5 * math.hypot(kl_base[1], kl_model[1])


@pytest.mark.parametrize("name", ["line", "flower"])
def test_energy_moves_the_mass_and_keeps_the_support(gallery, name):
    _, table = gallery
    data, base, model, flow = table[f"{name}: distance to the support"][:, 0]
    assert max(data, base, model) < flow / 3
    kl_base, kl_model = table[f"{name}: KL from the data, nats"][1:3]
    assert -4 * kl_model[1] <= kl_model[0] < 0.1 * kl_base[0]

    masses = np.stack([row for label, row in table.items() if re.match(f"{name}: (t|octant) ", label)])
    values, errors = masses[..., 0], masses[..., 1]  # (8, columns)
    np.testing.assert_allclose(values.sum(0), 1, atol=0.005)
    assert (abs(values[:, 1] - 1 / 8) < 4 * errors[:, 1] + 0.001).all()  # the base is even
    apart = abs(values - values[:, :1]).sum(0) / 2
    assert apart[2] < apart[1] / 3
    if name == "line":
        truth = np.diff(np.arange(9) ** 3) / 512
        assert (abs(values[:, 0] - truth) < 4 * errors[:, 0] + 0.001).all()
        assert abs(kl_base[0] - (math.log(3) - 2 / 3)) < 4 * kl_base[1] + 0.02
