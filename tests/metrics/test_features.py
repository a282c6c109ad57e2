import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from gebm.data.images import DIGITS_TEST, labelled_digits
from gebm.errors import InputError
from gebm.metrics import choose_features, extract, features, frechet_distance, make_reference, metric_name
from gebm.metrics.digits_cnn import DigitsCNN
from gebm.metrics.features import Moments, Pixels
from gebm.metrics.resnet56 import WEIGHTS, ResNet56


def random_images(n=12, c=3, size=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, c, size, size), dtype=np.uint8)


@pytest.fixture(scope="module")
def digits_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("digits")


@pytest.fixture(scope="module")
def digits_cnn(digits_folder):
    return DigitsCNN.cached(digits_folder)


@pytest.fixture(autouse=True)
def no_weights_of_this_machine(monkeypatch):
    monkeypatch.delenv("GEBM_DATA", raising=False)


def test_pixels():
    images = random_images()
    x = extract(images, Pixels(), batch_size=5)
    assert x.dtype == torch.float64 and x.shape == (12, 3072)
    np.testing.assert_allclose(x.numpy(), images.reshape(12, -1) / 127.5 - 1, atol=1e-6)
    averaged = images.reshape(12, 3, 8, 4, 8, 4).mean((3, 5)).reshape(12, -1) / 127.5 - 1
    np.testing.assert_allclose(extract(torch.tensor(images), Pixels(8)).numpy(), averaged, atol=1e-6)


@pytest.mark.parametrize("images", [random_images().astype(float), random_images()[0], random_images(0)])
def test_only_uint8_image_batches_are_taken(images):
    with pytest.raises(InputError, match="uint8"):
        extract(images, Pixels())


def test_digits_cnn_is_right_on_held_out_digits_and_does_not_overfit(digits_cnn):
    images, labels = labelled_digits()
    predicted = digits_cnn.logits(torch.tensor(images)).argmax(1).numpy()
    assert (predicted == labels)[-DIGITS_TEST:].mean() >= 0.97
    x = extract(images, digits_cnn)
    assert x.shape == (1797, 64)
    rest, train, held_out = (Moments.of(part) for part in x.split([997, 400, 400]))
    # among training digits 0.39 +- 0.14; overfitted features put held-out digits further away
    assert frechet_distance(held_out, rest) < frechet_distance(train, rest) + 3 * 0.14
    blank = Moments.of(extract(255 - images, digits_cnn))
    assert frechet_distance(blank, rest) > 30 * frechet_distance(train, rest)


def test_digits_cnn_resizes_and_refuses_colour(digits_cnn):
    images = random_images(4, 1, 16)
    assert digits_cnn(torch.tensor(images)).shape == (4, 64)
    with pytest.raises(InputError, match="grey"):
        digits_cnn(torch.tensor(random_images(4, 3, 8)))


def test_digits_cnn_is_trained_once_and_a_damaged_cache_is_rebuilt(digits_cnn, digits_folder, monkeypatch):
    (path,) = digits_folder.iterdir()
    trained = path.read_bytes()
    train = "gebm.metrics.digits_cnn._train"
    for damaged in (trained, b"", trained[:1000], trained[:-9] + bytes([trained[-9] ^ 1]) + trained[-8:]):
        path.write_bytes(damaged)
        if damaged != trained:
            monkeypatch.setattr(train, lambda *_: digits_cnn.state_dict())
            assert DigitsCNN.cached(digits_folder).key == digits_cnn.key
        monkeypatch.setattr(train, lambda *_: pytest.fail("trained again"))
        assert DigitsCNN.cached(digits_folder).key == digits_cnn.key
    assert list(digits_folder.iterdir()) == [path]


def test_resnet56_knows_cifar10(shared_data):
    from PIL import Image

    network = ResNet56.from_file(shared_data / "cifar10_resnets" / WEIGHTS)
    sprite = np.asarray(Image.open(shared_data / "cifar10" / "test_batch.0.webp").convert("RGB"))
    images = sprite.reshape(250, 32, 8, 32, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, 32, 32)[:600]
    labels = np.load(shared_data / "cifar10" / "labels.npy")[50_000:50_600]
    with torch.inference_mode():
        predicted = network.logits(torch.tensor(images)).argmax(1).numpy()
    assert (predicted == labels).mean() == pytest.approx(0.9339, abs=3 * (0.9339 * 0.0661 / 600) ** 0.5)

    grey = torch.tensor(images[:4, :1])
    torch.testing.assert_close(network(grey), network(grey.repeat(1, 3, 1, 1)))
    plain = torch.full((1, 3, 32, 32), 200, dtype=torch.uint8)
    torch.testing.assert_close(network(torch.full((1, 3, 80, 50), 200, dtype=torch.uint8)), network(plain))


class Code:
    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def test_wrong_weights_are_one_line_and_run_no_code(tmp_path):
    code = Code()
    code.path = str(tmp_path / "ran")
    torch.save({"state_dict": {"module.conv1.weight": torch.zeros(16, 3, 3, 3)}}, tmp_path / "other.th")
    torch.save(ResNet56().state_dict(), tmp_path / "whole.th")
    (tmp_path / "cut.th").write_bytes((tmp_path / "whole.th").read_bytes()[:100_000])
    (tmp_path / "code.th").write_bytes(pickle.dumps(code, protocol=2))
    torch.save(code, tmp_path / "saved_code.th")
    torch.save([1, 2], tmp_path / "list.th")
    (tmp_path / "empty.th").touch()
    assert ResNet56.from_file(tmp_path / "whole.th")
    for name in ("other", "cut", "code", "saved_code", "list", "empty", "absent"):
        with pytest.raises(InputError) as error:
            choose_features("cifar-resnet56", "cifar10", (3, 32, 32), tmp_path / f"{name}.th")
        assert f"{name}.th" in str(error.value) and "\n" not in str(error.value)
        if name == "absent":  # who names a file wants it
            with pytest.raises(InputError, match="no such weights file"):
                choose_features("auto", "cifar10", (3, 32, 32), tmp_path / f"{name}.th")
            continue
        extractor, line = choose_features("auto", "cifar10", (3, 32, 32), tmp_path / f"{name}.th")
        assert extractor.name == "pixels-8x8" and str(error.value) in line
    assert not (tmp_path / "ran").exists()


def test_folded_norms_change_nothing(tmp_path):
    torch.manual_seed(0)
    plain = ResNet56()
    for norm in (m for m in plain.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.running_mean.normal_(std=0.1)
        norm.running_var.uniform_(0.5, 2)
        torch.nn.init.normal_(norm.bias, std=0.1)
    torch.save({"state_dict": {f"module.{k}": v for k, v in plain.state_dict().items()}}, tmp_path / "w.th")
    images = torch.tensor(random_images(2))
    folded = ResNet56.from_file(tmp_path / "w.th")(images)
    torch.testing.assert_close(folded, plain.eval()(images).detach(), rtol=1e-4, atol=1e-4)


def test_auto_takes_the_best_available(tmp_path, digits_folder, digits_cnn, monkeypatch):
    def choose(dataset, shape):
        extractor, line = choose_features("auto", dataset, shape, data_path=tmp_path, cache_dir=digits_folder)
        assert line.startswith(f"features: {extractor.name} (") and "\n" not in line
        return extractor.name, line

    assert choose("digits", (1, 8, 8))[0] == "digits-cnn"
    assert choose("folder:grey", (1, 8, 8))[0] == "pixels"
    name, line = choose("cifar10", (3, 32, 32))
    assert name == "pixels-8x8" and str(tmp_path) in line and "--fid_weights" in line
    for folder in (tmp_path / "elsewhere" / "cifar10_resnets", tmp_path, tmp_path / "cifar10_resnets"):
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(ResNet56().state_dict(), folder / WEIGHTS)
        monkeypatch.setenv("GEBM_DATA", str(tmp_path / "elsewhere"))
        name, line = choose("folder:birds", (3, 64, 64))
        assert name == "cifar-resnet56" and str(folder / WEIGHTS) in line
        (folder / WEIGHTS).unlink()


def test_named_and_own_features(monkeypatch):
    assert metric_name("FD", choose_features("pixels", "cifar10", (3, 32, 32))[0]) == "FD(pixels)"
    own = types.ModuleType("own_features")
    own.make, own.bare = lambda weights, data_path, cache_dir: Pixels(4), lambda *_: len
    monkeypatch.setitem(sys.modules, "own_features", own)
    assert choose_features("own_features:make", "cifar10", (3, 32, 32))[0].name == "pixels-4x4"
    with pytest.raises(InputError, match="name and key"):
        choose_features("own_features:bare", "cifar10", (3, 32, 32))
    with pytest.raises(InputError, match="did you mean pixels"):
        choose_features("pixel", "cifar10", (3, 32, 32))


def test_classify_gives_the_logits_from_features(digits_cnn):
    images = torch.tensor(random_images(4, 1, 8))
    torch.testing.assert_close(digits_cnn.classify(extract(images, digits_cnn)), digits_cnn.logits(images))
    network = ResNet56().eval().requires_grad_(False)
    images = torch.tensor(random_images(2))
    torch.testing.assert_close(network.classify(network(images).double()), network.logits(images))


def test_references_are_kept_by_content(tmp_path, monkeypatch):
    images, computed = random_images(300, 1, 4), []
    stream = features._feature_batches
    monkeypatch.setattr(features, "_feature_batches", lambda *a: computed.append(1) or stream(*a))

    def made(images=images, extractor=None, split="test"):
        extractor = extractor or Pixels()
        computed.clear()
        result = make_reference(images, extractor, tmp_path, split, batch_size=70)
        x = extract(images, extractor)
        whole = Moments.of(x)
        assert result.moments.n == len(images)
        torch.testing.assert_close(result.moments.cov, whole.cov)
        torch.testing.assert_close(result.moments.mean, whole.mean)
        torch.testing.assert_close(result.moments.sqrt_cov, whole.sqrt_cov, atol=1e-6, rtol=0)
        assert torch.equal(result.features, x[np.random.RandomState(0).permutation(len(x))[: features.SUBSET]])
        return len(computed) == 2  # computed here too, not only by `extract`

    assert made() and not made()
    changed = images.copy()
    changed[5, 0, 0, 0] ^= 1
    assert made(changed) and made(images[:200]) and made(extractor=Pixels(2)) and made(split="train")
    assert not made()
    files = sorted(tmp_path.iterdir())
    whole = [path.read_bytes() for path in files]
    for damaged in (whole[1:] + whole[:1], [content[:-20] for content in whole]):  # each other's; cut
        for path, content in zip(files, damaged):
            path.write_bytes(content)
        assert made() and not made()
    monkeypatch.setattr(features, "SUBSET", 100)
    assert made() and not made()


def test_an_unwritable_cache_only_warns(tmp_path):
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="not cached"):
        assert make_reference(random_images(5), Pixels(2), tmp_path / "file", "test").moments.n == 5
