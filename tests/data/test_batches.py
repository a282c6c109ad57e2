import numpy as np
import pytest
import torch

from gebm.data import Batches, from_uint8, to_uint8
from gebm.errors import InputError

IMAGES = np.random.default_rng(0).integers(256, size=(6, 3, 16, 16), dtype=np.uint8)


def numbered(count):
    return np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1)


def draw(batches, count):
    return [to_uint8(next(batches)).flatten().tolist() for _ in range(count)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("size, batch", [(10, 5), (10, 4), (10, 10), (3, 7)])
def test_epochs_are_permutations(size, batch):
    batches = Batches(numbered(size), batch, generator=generator())
    drawn = np.concatenate(draw(batches, 6 * size))
    epochs = drawn.reshape(-1, size)
    assert (np.sort(epochs, axis=1) == np.arange(size)).all()
    assert len({tuple(epoch) for epoch in epochs}) > 4  # shuffled anew each time


def test_batches_are_images_in_range():
    batches = Batches(IMAGES, 4, generator=generator())
    batch = next(batches)
    assert iter(batches) is batches and batch.dtype == torch.float32 and batch.shape == (4, 3, 16, 16)
    known = from_uint8(torch.from_numpy(IMAGES))
    assert all(any(image.equal(other) for other in known) for image in batch)
    assert next(Batches(torch.from_numpy(IMAGES), 4, generator=generator())).equal(batch)


@pytest.mark.parametrize("before", [0, 1, 3, 5, 13])
def test_resume_bit_for_bit(before, tmp_path):
    shared = generator(1)
    batches = Batches(numbered(10), 4, generator=shared)
    draw(batches, before)
    torch.rand(3, generator=shared)  # another user of the same generator
    torch.save(batches.state_dict(), tmp_path / "state")
    assert (tmp_path / "state").stat().st_size < 10_000
    expected = draw(batches, 8)
    other = Batches(numbered(10), 4, generator=generator(2))
    draw(other, 2)
    other.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert draw(other, 8) == expected
    with pytest.raises(InputError, match="10 images, this data set has 11"):
        Batches(numbered(11), 4).load_state_dict(batches.state_dict())


def test_seed_decides():
    first, same, other = (draw(Batches(numbered(50), 10, generator=generator(s)), 3) for s in (0, 0, 1))
    assert first == same != other


@pytest.mark.parametrize("array, batch", [(numbered(3), 0), (numbered(0), 1), (IMAGES.astype(int), 1), (IMAGES[0], 1)])
def test_bad_batches(array, batch):
    with pytest.raises(InputError):
        Batches(array, batch)


def test_mapped_read_only_array_brings_no_warning(tmp_path, recwarn):
    np.save(tmp_path / "images.npy", IMAGES)
    next(Batches(np.load(tmp_path / "images.npy", mmap_mode="r"), 2))
    assert not recwarn.list


def test_a_mapped_file_that_does_not_fit_is_read_row_by_row(tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(256, size=(40, 1, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    copied = Batches(mapped, 7, generator=generator())
    monkeypatch.setattr("gebm.data.batches.free_bytes", lambda device: 2 * images.nbytes - 1)
    left = Batches(mapped, 7, generator=generator())
    assert left.data.data_ptr() == mapped.ctypes.data != copied.data.data_ptr()
    for _ in range(12):
        assert next(left).equal(next(copied))
    left.load_state_dict(copied.state_dict())
    assert next(left).equal(next(copied))
