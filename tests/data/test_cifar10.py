import hashlib
import http.server
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest

from gebm.data import cifar10, load_images
from gebm.errors import InputError

LAYOUTS = cifar10.SOURCES


def fails(data_path, says):
    with pytest.raises(InputError, match=says) as error:
        load_images("cifar10", data_path)
    assert "\n" not in str(error.value)
    assert not (data_path / "cache").exists()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(layout, tmp_path, write_cifar10, pixels):
    write_cifar10(tmp_path, layout)
    before = sorted(tmp_path.rglob("*"))
    data = load_images("cifar10", tmp_path)
    assert np.array_equal(data.train, pixels[:5].reshape(-1, 3, 32, 32))
    assert np.array_equal(data.test, pixels[5].reshape(-1, 3, 32, 32))
    assert isinstance(data.train, np.memmap) and not data.train.flags.writeable
    written = set(tmp_path.rglob("*")) - set(before)
    assert {path.name for path in written if path.is_file()} == {"train.npy", "test.npy", "meta.json", "content.npz"}


def test_pickles_of_python_3(tmp_path, write_cifar10, pixels, modern_pickle):
    write_cifar10(tmp_path, "cifar-10-batches-py", pickled=modern_pickle)
    assert np.array_equal(load_images("cifar10", tmp_path).test.reshape(-1, 3072), pixels[5])


def test_resized(tmp_path, write_cifar10, pixels):
    write_cifar10(tmp_path, LAYOUTS[0])
    half = load_images("cifar10", tmp_path, 16)
    assert half.shape == (3, 16, 16) and half.key != load_images("cifar10", tmp_path, 32).key
    assert load_images("cifar10", tmp_path, 32).key == load_images("cifar10", tmp_path).key
    # far from the border the antialiased bilinear filter is [1 3 3 1] / 8 along each axis
    image, kernel = pixels[0, 0, :1024].reshape(32, 32), np.array([1, 3, 3, 1]) / 8
    expected = kernel @ image[9:13, 11:15] @ kernel
    assert abs(half.train[0, 0, 5, 6] - expected) <= 1


def test_key_follows_the_content(tmp_path, write_cifar10):
    source = write_cifar10(tmp_path, LAYOUTS[0])
    key = load_images("cifar10", tmp_path).key
    batch = source / "data_batch_3.bin"
    content = bytearray(batch.read_bytes())
    content[100] ^= 1
    batch.write_bytes(content)
    assert load_images("cifar10", tmp_path).key != key


@pytest.mark.parametrize("layout", LAYOUTS)
def test_missing_batch(layout, tmp_path, write_cifar10):
    write_cifar10(tmp_path, layout, batch={"data_batch_3": None})
    fails(tmp_path, rf"{layout}: data_batch_3.* missing")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_batch_of_the_wrong_length(layout, tmp_path, write_cifar10):
    write_cifar10(tmp_path, layout, batch={"test_batch": b"\x80" * 99})
    expected = "12,292" if "bin" in layout else "about 12,416"
    fails(tmp_path, rf"test_batch.*: 99 bytes.*{expected}")


@pytest.mark.parametrize("part", [0, 0.3, 0.9, 0.9999])
@pytest.mark.parametrize("layout", LAYOUTS[2:])
def test_truncated_archive(layout, part, tmp_path, write_cifar10):
    source = write_cifar10(tmp_path, layout)
    content = source.read_bytes()[: int(part * source.stat().st_size)]
    source.write_bytes(content)
    fails(tmp_path, rf"{layout}: {len(content):,} bytes, cannot be read .*has {cifar10.ARCHIVE_BYTES[layout]:,} bytes")


def test_damaged_archive(tmp_path, write_cifar10):
    source = write_cifar10(tmp_path, LAYOUTS[2])
    content = bytearray(source.read_bytes())
    content[len(content) // 2] ^= 1  # random pixels are stored uncompressed: only gzip's checksum can see this
    source.write_bytes(content)
    fails(tmp_path, "cannot be read .*CRC")


class Attack:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("layout", ["cifar-10-batches-py", "cifar-10-python.tar.gz"])
@pytest.mark.parametrize("function", [exec, eval, getattr, np.load, np.frombuffer, subprocess.run])
def test_pickle_with_code(layout, function, tmp_path, write_cifar10):
    attack = pickle.dumps({b"data": Attack(function, "raise SystemExit")}, protocol=4)
    write_cifar10(tmp_path, layout, batch={"data_batch_2": attack})
    fails(tmp_path, rf"data_batch_2: refused, the pickle asks for \w+\.{function.__name__}; only uint8 arrays")


def test_array_types_cannot_be_called_to_harm(tmp_path, write_cifar10):
    """An object array made of raw bytes: with the real numpy types this dereferences a pointer of the file's choice."""
    forged = (
        b"\x80\x02}C\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R(K\x01K\x01\x85"
        b"cnumpy\ndtype\nC\x02O8K\x00K\x01\x87R(K\x03C\x01|NNNK\x08K\x08K\x00tb\x89C\x08AAAAAAAAtbs."
    )
    write_cifar10(tmp_path, "cifar-10-batches-py", batch={"data_batch_1": forged})
    fails(tmp_path, "data_batch_1: .*the array is not uint8")


@pytest.mark.parametrize(
    "content",
    [
        {},
        [1],
        "data",
        {b"data": [1, 2]},
        {b"data": np.zeros((4, 3072), np.float32)},
        {b"data": np.zeros((4, 3071), np.uint8)},
        {b"data": np.asfortranarray(np.zeros((4, 3072), np.uint8))},
        {b"data": np.array([None])},
    ],
)
def test_pickle_of_something_else(content, tmp_path, write_cifar10):
    write_cifar10(tmp_path, "cifar-10-batches-py", batch={"data_batch_5": pickle.dumps(content, protocol=4)})
    fails(tmp_path, "data_batch_5: .* not a batch of 4 images")


# --- download ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves tmp_path/served on 127.0.0.1; the loader downloads the binary archive from there."""
    served = tmp_path / "served"
    served.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=served)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(cifar10, "URL", f"http://127.0.0.1:{running.server_port}/{LAYOUTS[2]}")
        yield served
        running.shutdown()
        thread.join()


def test_download(server, tmp_path, write_cifar10, pixels, monkeypatch):
    archive = write_cifar10(server, LAYOUTS[2])
    monkeypatch.setattr(cifar10, "MD5", hashlib.md5(archive.read_bytes()).hexdigest())
    data = load_images("cifar10", tmp_path / "data")
    assert np.array_equal(data.test.reshape(-1, 3072), pixels[5])
    archive.unlink()
    assert load_images("cifar10", tmp_path / "data").key == data.key  # fetched once


@pytest.mark.parametrize("existed", [True, False])
def test_download_with_the_wrong_hash(existed, server, tmp_path, write_cifar10):
    write_cifar10(server, LAYOUTS[2])
    data_path = tmp_path / "data"
    if existed:
        data_path.mkdir()
    fails(data_path, r"data: no CIFAR-10 there, and the download failed \(.*hash.*; put one of cifar-10-batches-bin")
    assert list(data_path.iterdir()) == [] if existed else not data_path.exists()


def test_download_of_nothing(server, tmp_path):
    fails(tmp_path / "data", "the download failed .*404.* put one of")
    assert not (tmp_path / "data").exists()


def test_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10, "URL", "http://127.0.0.1:9/x")  # the discard port: refused
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    fails(tmp_path / "data", "the download failed .*refused.* put one of")


# --- the real thing ---------------------------------------------------------------------------------------------------


def test_published_statistics(tmp_path, shared_data):
    subprocess.run([sys.executable, shared_data / "unpack_cifar10.py", tmp_path], check=True, stdout=subprocess.DEVNULL)
    data = load_images("cifar10", tmp_path)
    assert (data.train.shape, data.test.shape) == ((50_000, 3, 32, 32), (10_000, 3, 32, 32))
    means = data.train.mean(axis=(0, 2, 3)) / 255
    deviations = [data.train[:, c].std() / 255 for c in range(3)]
    assert means == pytest.approx([0.4914, 0.4822, 0.4465], abs=5e-5)  # the figures everyone normalises with
    assert deviations == pytest.approx([0.2470, 0.2435, 0.2616], abs=5e-5)
