import zipfile

import numpy as np
import pytest

from gebm.data import load_images, load_table

RNG = np.random.default_rng(0)


def pixels(*shape):
    return RNG.integers(256, size=shape, dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("last", [False, True])
def test_layouts(channels, last, tmp_path):
    train, test = pixels(5, channels, 16, 16), pixels(2, channels, 16, 16)
    stored = [split.transpose(0, 2, 3, 1) if last else split for split in (train, test)]
    np.savez_compressed(tmp_path / "a.npz", train=stored[0], test=stored[1], labels=np.arange(5))
    data = load_images(f"npz:{tmp_path / 'a.npz'}", tmp_path)
    assert data.name == "npz:a.npz"
    assert np.array_equal(data.train, train) and np.array_equal(data.test, test)


def test_planes_alone_and_an_array_alone(tmp_path):
    images = np.random.RandomState(0).randint(0, 256, (40, 8, 8)).astype(np.uint8)
    np.savez(tmp_path / "a.npz", anything=images)
    data = load_images(f"npz:{tmp_path / 'a.npz'}", tmp_path)
    test = [1, 13, 22]  # pinned: a new split would mix test into train
    assert np.array_equal(data.test[:, 0], images[test])
    assert np.array_equal(data.train[:, 0], np.delete(images, test, axis=0))


def test_an_image_added_moves_none_of_the_others_nor_does_the_layout(tmp_path):
    images, found = pixels(400, 3, 8, 8), []
    for name, array in {"a": images[:-1], "b": images, "c": images.transpose(0, 2, 3, 1)}.items():
        np.savez(tmp_path / f"{name}.npz", array)
        data = load_images(f"npz:{tmp_path / name}.npz", tmp_path)
        found.append([{image.tobytes() for image in split} for split in (data.train, data.test)])
    assert found[0][0] <= found[1][0] and found[0][1] <= found[1][1] and found[1] == found[2]


@pytest.mark.parametrize(
    "train, test", [("train", "test"), ("Train", "Test"), ("train", "val"), ("train_images", "test_images")]
)
@pytest.mark.parametrize("first", [0, 1])
def test_splits_by_their_names_in_any_order(train, test, first, tmp_path):
    splits = {train: pixels(5, 8, 8), test: pixels(3, 8, 8)}
    np.savez(tmp_path / "a.npz", **dict(sorted(splits.items(), key=lambda split: (split[0] == train) == first)))
    data = load_images(f"npz:{tmp_path / 'a.npz'}", tmp_path)
    assert np.array_equal(data.train[:, 0], splits[train]) and np.array_equal(data.test[:, 0], splits[test])


def test_arrays_that_are_left_out_are_named(tmp_path, caplog):
    splits = {name: pixels(4, 8, 8) for name in ("train", "test", "val")}
    np.savez(tmp_path / "a.npz", **splits, labels=np.arange(4))
    data = load_images(f"npz:{tmp_path / 'a.npz'}", tmp_path)
    assert np.array_equal(data.test[:, 0], splits["test"])
    assert f"{tmp_path / 'a.npz'}: left out the arrays val, labels" in caplog.text


@pytest.mark.parametrize("name, told", [("test", True), ("train", True), ("images", False)])
def test_an_array_of_one_split_alone_is_told_of(name, told, tmp_path, caplog):
    np.savez(tmp_path / "a.npz", **{name: pixels(20, 8, 8)})
    load_images(f"npz:{tmp_path / 'a.npz'}", tmp_path)
    assert (f"a.npz: holds {name} alone; a tenth of it, by content, is for testing" in caplog.text) == told


def test_what_archivers_hide_is_no_array(tmp_path):
    np.savez(tmp_path / "a.npz", pixels(30, 8, 8))
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("__MACOSX/._arr_0.npy", b"\x00\x05\x16\x07")
    assert len(load_images(f"npz:{tmp_path / 'a.npz'}", tmp_path).train) < 30


@pytest.mark.parametrize("size", [(28, 28), (28, 56), (5, 4)])
def test_images_of_any_size_go_through_unchanged(size, tmp_path, caplog):
    caplog.set_level("INFO")
    train, test = pixels(5, *size), pixels(2, *size)
    np.savez(tmp_path / "a.npz", train=train, test=test)
    for _ in range(2):  # made, and from the cache
        data = load_images(f"npz:{tmp_path / 'a.npz'}", tmp_path)
        assert np.array_equal(data.train[:, 0], train) and np.array_equal(data.test[:, 0], test)
    assert not any("resized" in message for message in caplog.messages)


def test_other_sizes_are_asked_for_and_cropped(tmp_path, caplog):
    caplog.set_level("INFO")
    images = np.zeros((2, 28, 56), np.uint8)
    images[:, :, 14:42] = 200
    np.savez(tmp_path / "a.npz", images)
    data = load_images(f"npz:{tmp_path / 'a.npz'}", tmp_path, 8)
    assert data.shape == (1, 8, 8) and data.train[..., 1:-1].min() == 200 and data.train.min() > 80
    assert "npz:a.npz: images of 28 x 56 are resized to 8 x 8 (--image_size)" in caplog.messages


@pytest.mark.parametrize(
    "arrays, says",
    [
        ({}, "holds no arrays; it must hold the arrays train and test, or one alone"),
        ({"train": pixels(2, 8, 8), "other": pixels(2, 8, 8)}, "holds train, other; it must"),
        ({"a": pixels(3, 8, 8) / 255}, r"a is float64 \(3, 8, 8\), must be uint8 \(N, C, H, W\)"),
        ({"a": pixels(3, 8, 8) / 255}, r"4 or more; of values in 0..1 save \(255 \* x\).round\(\).astype\('uint8'\)"),
        ({"a": pixels(3, 8, 8).astype(int)}, r"4 or more; of values in 0..255 save x.astype\('uint8'\)"),
        ({"a": pixels(3, 8, 8) > 9}, r"4 or more; save 255 \* x.astype\('uint8'\)"),
        ({"a": np.array([None, "x"])}, r"a is object \(2,\)"),
        ({"a": pixels(8, 8)}, r"\(8, 8\)"),
        ({"a": pixels(8, 8, 3)}, "sides of 4 or more"),  # one image, or 8 of 8x3?
        ({"a": pixels(2, 3, 8, 3)}, "sides of 4 or more"),
        ({"a": pixels(2, 4, 8, 8)}, "C 1 or 3"),
        ({"a": pixels(0, 8, 8)}, r"\(0, 8, 8\)"),
        ({"a": pixels(1, 8, 8)}, "one image; at least 2"),
        ({"train": pixels(3, 8, 8), "test": pixels(3, 16, 16)}, "must agree"),
        ({"train": pixels(3, 8, 8), "test": pixels(3, 3, 8, 8)}, "must agree"),
    ],
)
def test_wrong_arrays(arrays, says, tmp_path, refused):
    np.savez(tmp_path / "a.npz", **arrays)
    refused(f"npz:{tmp_path / 'a.npz'}", tmp_path, f"a.npz.*{says}")


@pytest.mark.parametrize("part, says", [(0, "not a readable zip"), (0.5, "not a readable zip"), (None, "no such file")])
def test_truncated_or_absent(part, says, tmp_path, refused):
    if part is not None:
        np.savez(tmp_path / "a.npz", pixels(3, 8, 8))
        content = (tmp_path / "a.npz").read_bytes()
        (tmp_path / "a.npz").write_bytes(content[: int(part * len(content))])
    refused(f"npz:{tmp_path / 'a.npz'}", tmp_path, says)


def test_what_is_no_npz_is_told_what_to_write(tmp_path, refused):
    np.save(tmp_path / "a.npy", pixels(3, 8, 8))
    refused(f"npz:{tmp_path / 'a.npy'}", tmp_path, r"a.npy: one .npy array; put it into an .npz with numpy.savez\(")
    refused(f"npz:{tmp_path}", tmp_path, f"a folder; of images write folder:{tmp_path}")


def test_a_tilde_is_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    np.savez(tmp_path / "a.npz", pixels(20, 8, 8))
    assert load_images("npz:~/a.npz", tmp_path).name == "npz:a.npz"
    np.savez(tmp_path / "t.npz", np.random.default_rng(0).normal(size=(60, 2)))
    assert load_table("npz:~/t.npz", tmp_path).name == "npz:t.npz"


def test_damaged(tmp_path, refused):
    np.savez(tmp_path / "a.npz", pixels(3000, 8, 8))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[-1000] ^= 1
    (tmp_path / "a.npz").write_bytes(content)
    refused(f"npz:{tmp_path / 'a.npz'}", tmp_path, "cannot be read .*CRC")
