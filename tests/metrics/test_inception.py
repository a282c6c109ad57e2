"""The Inception features with torch-fidelity's own code where it is installed, else with a stand-in of its interface.

Its package imports torchvision, which these features do not need: a stand-in for that is enough.
"""

import importlib.util
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from gebm.errors import InputError
from gebm.metrics import choose_features, inception, metric_name
from gebm.metrics.inception import Inception, download


class StandIn(nn.Module):
    """The constructor, attributes and output of torch-fidelity 0.4's FeatureExtractorInceptionV3."""

    def __init__(self, name, features_list, feature_extractor_weights_path=None, **kwargs):
        super().__init__()
        assert features_list == ["2048"] and feature_extractor_weights_path is not None
        self.body, self.fc = nn.Linear(3, 2048), nn.Linear(2048, 1008)
        self.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=False))

    def forward(self, x):
        assert x.dtype == torch.uint8 and x.ndim == 4 and x.shape[1] == 3
        return (self.body(x.float().mean((2, 3)) / 255),)


class Torchvision(types.ModuleType):
    """A submodule that is there, and any other name as an empty class."""

    __path__: list[str] = []
    __version__ = "0"

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return sys.modules.get(f"{self.__name__}.{name}") or type(name, (), {})


@pytest.fixture(params=["torch-fidelity", "stand-in"])
def network_class(request, monkeypatch):
    if request.param == "stand-in":
        module = types.ModuleType("torch_fidelity")
        module.FeatureExtractorInceptionV3 = StandIn
        monkeypatch.setitem(sys.modules, "torch_fidelity", module)
        yield StandIn
        return
    if importlib.util.find_spec("torch_fidelity") is None:
        pytest.skip("no torch-fidelity: pip install --no-deps torch-fidelity")
    before = set(sys.modules)
    names = ["", ".datasets", ".models", ".models.vgg", ".transforms", ".transforms.functional", ".utils"]
    for name in names:
        monkeypatch.setitem(sys.modules, f"torchvision{name}", Torchvision(f"torchvision{name}"))
    from torch_fidelity import FeatureExtractorInceptionV3

    yield FeatureExtractorInceptionV3
    for name in set(sys.modules) - before:
        if name.startswith("torch_fidelity"):
            del sys.modules[name]


@pytest.fixture
def weights(network_class, tmp_path, monkeypatch):
    """Random weights in the true format, and the network that has them."""
    torch.manual_seed(0)
    if network_class is StandIn:
        network = nn.ModuleDict({"body": nn.Linear(3, 2048), "fc": nn.Linear(2048, 1008)})
    else:
        with monkeypatch.context() as patch:
            patch.setattr(torch, "load", lambda *args, **kwargs: {})
            patch.setattr(network_class, "load_state_dict", lambda *args: None)
            network = network_class("random", ["2048"], feature_extractor_weights_path="none")
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    return tmp_path / "weights.pth", network


def images(n=2, channels=3, size=32):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (n, channels, size, size), generator=generator, dtype=torch.uint8)


def test_features_and_logits(weights, network_class):
    path, network = weights
    extractor, line = choose_features("inception", "cifar10", (3, 32, 32), path)
    x = extractor(images())
    assert x.shape == (2, 2048) and x.dtype == torch.float32 and not extractor.training
    assert not any(p.requires_grad for p in extractor.parameters())
    logits = extractor.classify(x.double())
    torch.testing.assert_close(logits, x @ network.fc.weight.detach().T)
    if network_class is not StandIn:
        own = network_class("own", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path))
        expected, expected_logits = own(images())
        assert torch.equal(x, expected)
        torch.testing.assert_close(logits, expected_logits)
    grey = images(channels=1)
    torch.testing.assert_close(extractor(grey), extractor(grey.repeat(1, 3, 1, 1)))
    assert extractor.name in line and extractor.name.startswith("inception-")


def test_only_the_published_weights_give_a_fid(weights, monkeypatch):
    path, _ = weights
    other = Inception.from_file(path)
    assert metric_name("FD", other) == f"FD({other.name})" != metric_name("KD", other)
    monkeypatch.setattr(inception, "SHA256", other.key.removeprefix("inception "))
    published = Inception.from_file(path)
    names = [metric_name(name, published) for name in ("FD", "KD", "classifier score", "precision")]
    assert names == ["FID", "KID", "IS", "precision(inception)"] and published.key == other.key

    class Named:
        name, key, published = "inception", "x", True

    assert metric_name("FD", Named()) == "FD(inception)"


class Code:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_wrong_weights_are_one_line_and_run_no_code(weights, tmp_path):
    path, _ = weights
    (tmp_path / "cut.pth").write_bytes(path.read_bytes()[:100_000])
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "other.pth")
    torch.save(Code(tmp_path / "ran"), tmp_path / "code.pth")
    for name in ("cut", "other", "code", "absent"):
        with pytest.raises(InputError, match=rf"{name}\.pth") as error:
            choose_features("inception", "cifar10", (3, 32, 32), tmp_path / f"{name}.pth")
        assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_without_torch_fidelity(tmp_path, monkeypatch):
    (tmp_path / "there.pth").touch()
    for module in (None, Broken("torch_fidelity")):
        monkeypatch.setitem(sys.modules, "torch_fidelity", module)
        for weights in (tmp_path / "there.pth", None):
            with pytest.raises(InputError, match=r"pip install 'gebm\[inception\]'") as error:
                choose_features("inception", "cifar10", (3, 32, 32), weights, tmp_path)
            assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["there.pth"]


class Broken(types.ModuleType):
    """As with a torchvision of another torch."""

    def __getattr__(self, name):
        raise RuntimeError("operator torchvision::nms does not exist\n")


@pytest.mark.parametrize("network_class", ["stand-in"], indirect=True)
def test_a_failed_download_says_what_to_do(network_class, tmp_path, monkeypatch):
    monkeypatch.setattr(inception, "URL", "http://127.0.0.1:9/weights-inception.pth")  # the discard port: refused
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(InputError, match="download.* failed .*--inception_weights FILE") as error:
        download(tmp_path)
    assert "\n" not in str(error.value)
