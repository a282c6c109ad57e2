import zipfile

import numpy as np
import pytest

from gebm.data import load_images

LAYOUTS = ["img_align_celeba", "img_align_celeba.zip"]
PARTITION = "000001.jpg 0\n000002.jpg 0\n000003.jpg 1\n000004.jpg 0\n000005.jpg 2\n000006.jpg 2\n000007.jpg 0\n"


@pytest.mark.parametrize("size", [None, 16, 64])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_splits_and_pixels(layout, size, tmp_path, write_celeba, resized_and_cropped):
    inside = "img_align_celeba/" if "zip" in layout else ""
    contents = write_celeba(tmp_path, layout, inside=inside).values()
    images = [resized_and_cropped(content, size or 32) for content in contents]
    data = load_images("celeba", tmp_path, size)
    assert data.shape == (3, size or 32, size or 32)
    for split, numbers in (data.train, [0, 1, 3, 6]), (data.test, [4, 5]):  # 2 is of the validation split
        expected = np.stack([images[i] for i in numbers])
        assert np.abs(split.astype(int) - expected).max() <= 1  # of 255: one resize of a box, where they round twice
        assert (split == expected).mean() > 0.99


def test_folder_and_archive_agree(tmp_path, write_celeba):
    first, second = tmp_path / "a", tmp_path / "b"
    write_celeba(first, LAYOUTS[0])
    write_celeba(second, LAYOUTS[1])
    assert np.array_equal(load_images("celeba", first).train, load_images("celeba", second).train)


@pytest.mark.parametrize("hidden", ["__MACOSX/img_align_celeba/", ".ipynb_checkpoints/", "img_align_celeba/@eaDir/"])
def test_what_archivers_and_servers_hide_is_not_read(hidden, tmp_path, write_celeba):
    write_celeba(tmp_path / "a", LAYOUTS[1])
    content = write_celeba(tmp_path / "b", LAYOUTS[1])
    with zipfile.ZipFile(tmp_path / "b" / "celeba" / LAYOUTS[1], "a") as archive:
        for name in ("000001.jpg", "000099.jpg"):
            archive.writestr(hidden + name, content["000005.jpg"])
    first, second = (load_images("celeba", tmp_path / name) for name in "ab")
    assert np.array_equal(first.train, second.train) and np.array_equal(first.test, second.test)


def test_nothing_there(tmp_path, refused):
    refused("celeba", tmp_path, "celeba: no CelebA there; put img_align_celeba.zip .* list_eval_partition.txt there")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "partition, says",
    [
        (PARTITION + "000009.jpg 0\n000008.jpg 2\n", r"names 000009.jpg, not in .*celeba.* \(2 missing in all\)"),
        (PARTITION[:-26], r"has no line for 000006.jpg \(for 2 in all\)"),
        (PARTITION[:-2] + "3\n", "line 7: '000007.jpg 3', must be an image and 0, 1 or 2"),
        (PARTITION + "000001.jpg\n", "line 8: '000001.jpg'"),
        (PARTITION + "\n", "line 8: ''"),
        (PARTITION.replace(" 2", " 1"), r"4 images of train \(0\), 0 of test"),
    ],
)
def test_wrong_partition(layout, partition, says, tmp_path, write_celeba, refused):
    write_celeba(tmp_path, layout, partition=partition)
    refused("celeba", tmp_path, rf"list_eval_partition.txt.*{says}")


def test_no_partition(tmp_path, write_celeba, refused):
    write_celeba(tmp_path)
    (tmp_path / "celeba" / "list_eval_partition.txt").unlink()
    refused("celeba", tmp_path, "list_eval_partition.txt: cannot be read")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_damaged_jpeg_is_named(layout, tmp_path, write_celeba, refused):
    content = write_celeba(tmp_path / "sound")["000006.jpg"]
    write_celeba(tmp_path, layout, image={"000006.jpg": content[: len(content) // 2]})
    refused("celeba", tmp_path, r"img_align_celeba.*000006.jpg: not a usable image \(image file is truncated")


def test_other_files_beside_the_images(tmp_path, write_celeba):
    write_celeba(tmp_path, LAYOUTS[1], image={"__MACOSX/._000001.jpg": b"x", "Thumbs.db": b"x", "sub/": b""})
    assert len(load_images("celeba", tmp_path).train) == 4


def test_damaged_archive(tmp_path, write_celeba, refused):
    write_celeba(tmp_path, LAYOUTS[1])
    path = tmp_path / "celeba" / LAYOUTS[1]
    content = path.read_bytes()
    path.write_bytes(content[:3000] + b"x" + content[3001:])
    refused("celeba", tmp_path, "000001.jpg cannot be read .*CRC")
    path.write_bytes(content[:3000])
    refused("celeba", tmp_path, "3,000 bytes, not a readable zip archive")
