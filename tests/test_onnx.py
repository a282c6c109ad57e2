"""ONNX files give torch's values; what cannot be written is said."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gebm import GEBM, Architecture
from gebm.errors import InputError
from gebm.networks import BASES, ENERGIES, FLOWS
from gebm.onnx import TOLERANCE, check_packages, export_onnx

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

IMAGES = Architecture(shape=(1, 8, 8), latent_dim=4, width=0.1)
ROWS = Architecture(shape=(3,), latent_dim=3, width=0.05, blocks=2, bn=True)
ALL = [
    *(replace(IMAGES, base=name, energy=name) for name in sorted(ENERGIES.keys() & BASES.keys() - FLOWS.keys())),
    *(replace(ROWS, base=name, energy="mlp") for name in FLOWS),
    *(replace(ROWS, base="nvp", energy=name, blocks=1) for name in FLOWS),
]


def build(a: Architecture, dtype: torch.dtype = torch.float32) -> GEBM:
    torch.manual_seed(0)
    model = GEBM.build(a, dtype=dtype)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.05 * torch.rand_like(tensor))
    return model.eval()


def check(model: GEBM, folder, n: int = 5, tolerance: float = 1e-4) -> None:
    """The files against the model itself, unfolded, by a batch size of its own."""
    generator = torch.Generator().manual_seed(3)
    z = model.prior.sample(n, generator, like=model.log_partition.detach())
    with torch.no_grad():
        x = model.base(z)
        expected = {"base": (z, x), "energy": (x, model.energy(x))}
        if model.has_density:
            expected["log_prob"] = x, model.base.log_prob(x)
    if model.architecture.base == "mogmaf":
        del expected["base"]
    assert {file.name for file in folder.iterdir()} == {f"{name}.onnx" for name in expected} | {"config.json"}
    for name, (takes, gives) in expected.items():
        session = onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {session.get_inputs()[0].name: takes.numpy()})
        np.testing.assert_allclose(found, gives.numpy(), rtol=tolerance, atol=tolerance, err_msg=name)


def test_files_give_torchs_values(tmp_path):
    model = build(replace(IMAGES, base="dcgan", energy="resnet-sn", prior="uniform"))
    lines = export_onnx(model, tmp_path / "out")
    assert [line.partition(":")[0] for line in lines] == ["base.onnx", "energy.onnx"]
    assert all("of torch (onnxruntime, batches of 1, 2, 7)" in line for line in lines)
    check(model, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architecture"]["prior"] == "uniform"


@pytest.mark.slow
@pytest.mark.parametrize("a", ALL, ids=lambda a: f"{a.base}-{a.energy}")
def test_every_network(a, tmp_path):
    model = build(a)
    lines = export_onnx(model, tmp_path / "out")
    assert [line for line in lines if "log_ndtr" in line] == (lines[:1] if a.base == "mogmaf" else [])
    check(model, tmp_path / "out")


@pytest.mark.slow
def test_float64(tmp_path):
    model = build(replace(ROWS, base="gaussian", energy="mlp"), torch.float64)
    export_onnx(model, tmp_path / "out")
    check(model, tmp_path / "out", tolerance=1e-6)


class Twisted(nn.Module):
    """What ONNX has no operator for."""

    def __init__(self, shape, width, trunc):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * torch.linalg.eigvalsh(x[:, 0])[:, 0]


def test_a_network_that_onnx_cannot_express_is_named(tmp_path):
    model = build(replace(IMAGES, base="dcgan", energy=f"{__name__}:Twisted"))
    with pytest.raises(InputError, match=r"energy.onnx: ONNX cannot express this network \(.*eigh"):
        export_onnx(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_file_that_differs_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(TOLERANCE, torch.float32, -1.0)
    with pytest.raises(InputError, match="base.onnx: onnxruntime differs from torch by"):
        export_onnx(build(replace(IMAGES, base="dcgan", energy="dcgan")), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_missing_packages(monkeypatch):
    monkeypatch.setattr("gebm.onnx.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs onnx and onnxscript: pip install 'gebm\[onnx\]'"):
        check_packages()


def test_a_network_that_a_copy_is_not_is_refused(tmp_path):
    model = build(replace(ROWS, base="nvp", energy="mlp"))
    norm = nn.BatchNorm1d(3)
    stock = norm.forward
    norm.forward = lambda x: 2 * stock(x)  # of the original, in whatever mode that is
    model.energy = nn.Sequential(norm, nn.Linear(3, 1), nn.Flatten(0))
    with pytest.raises(InputError, match=r"^energy.onnx: a copy of this network computes something else"):
        export_onnx(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
