"""Metrics of real images: they repeat to the bit, and rise with what is done to the images."""

import io

import numpy as np
import pytest
from PIL import Image, ImageFilter

from gebm.metrics import Moments, extract, frechet_distance, sample_metrics
from gebm.metrics.features import Reference
from gebm.metrics.resnet56 import WEIGHTS, ResNet56

N = 500  # images in a half


@pytest.fixture(scope="module")
def network(shared_data):
    return ResNet56.from_file(shared_data / "cifar10_resnets" / WEIGHTS)


@pytest.fixture(scope="module")
def read(shared_data):
    def read(name):
        """The 2,000 images of a sprite, 8 columns of 250."""
        sprite = np.asarray(Image.open(shared_data / "cifar10" / name).convert("RGB"))
        return sprite.reshape(250, 32, 8, 32, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, 32, 32)

    return read


@pytest.fixture(scope="module")
def halves(network, read):
    """Features of two disjoint parts of the train images."""
    return [extract(read(f"data_batch_{i}.0.webp")[:N], network) for i in (1, 2)]


def test_distance_between_train_halves_is_reproduced(network, read, halves):
    again = [extract(read(f"data_batch_{i}.0.webp")[:N], network) for i in (1, 2)]
    distance, same = (frechet_distance(*map(Moments.of, pair)) for pair in (halves, again))
    assert 0 < distance == same
    small = sample_metrics(Reference(Moments.of(halves[0]), halves[0]), network)
    found = {metric.name.removesuffix("(cifar-resnet56)"): metric.estimate(halves[1]) for metric in small}
    assert found["FD"].value == pytest.approx(distance, rel=1e-9)
    distance, (_, high) = found["KD"]
    assert abs(distance) < 2 * (high - distance)  # four standard errors: two samples of one distribution
    assert found["precision"].value == pytest.approx(found["recall"].value, abs=0.06)
    assert found["density"].value == pytest.approx(1, abs=0.1) and found["coverage"].value > 0.9
    assert 7 < found["classifier score"].value < 10  # of ten classes


def redraw(change):
    """Each image changed by a function of PIL images."""

    def apply(images):
        return np.stack([np.asarray(change(Image.fromarray(x.transpose(1, 2, 0)))).transpose(2, 0, 1) for x in images])

    return apply


def blur(radius):
    return redraw(lambda image: image.filter(ImageFilter.GaussianBlur(radius)))


def noise(sd):
    def apply(images):
        noisy = images + sd * np.random.RandomState(0).randn(*images.shape)
        return noisy.round().clip(0, 255).astype(np.uint8)

    return apply


def jpeg(quality):
    def compress(image):
        image.save(file := io.BytesIO(), "JPEG", quality=quality)
        return Image.open(file)

    return redraw(compress)


@pytest.fixture(scope="module")
def clean(network, read):
    """Test images and their features."""
    images = read("test_batch.0.webp")[:200]
    return images, extract(images, network)


@pytest.mark.parametrize(
    "corrupt, strengths",
    [(blur, (0.4, 0.7, 1.1)), (noise, (5, 15, 30)), (jpeg, (75, 40, 15))],
    ids=["blur", "noise", "jpeg"],
)
def test_corruption_raises_the_distance(corrupt, strengths, network, clean, halves):
    reference, (images, features) = Moments.of(halves[0]), clean
    sets = [features, *(extract(corrupt(strength)(images), network) for strength in strengths)]
    distances = [frechet_distance(Moments.of(x), reference) for x in sets]
    assert distances == sorted(distances) and distances[-1] > 2 * distances[0]
