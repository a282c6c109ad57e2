"""Archives, pickles and arrays made to fill the memory, to loop or to reach outside: one line, and little memory."""

import gzip
import io
import pickle
import struct
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pytest

from gebm.bounded import SMALL, Bounded
from gebm.data import cifar10, csv_files, load_images, load_table, read_rows
from gebm.data.archives import open_zip, read_pickled
from gebm.data.arrays import headers, load_npy, load_npz
from gebm.errors import InputError

BATCH = np.zeros((4, 3072), np.uint8)


@pytest.fixture
def refused():
    """The call raises InputError with one line that says `says`, and takes less than `most` bytes meanwhile."""

    def refused(call, says, most=SMALL):
        tracemalloc.start()
        try:
            with pytest.raises(InputError, match=says) as error:
                call()
            assert tracemalloc.get_traced_memory()[1] < most
        finally:
            tracemalloc.stop()
        assert "\n" not in str(error.value) and len(str(error.value)) < 500

    return refused


def tar_of(path, *members: tuple[tarfile.TarInfo, bytes]):
    with tarfile.open(path, "w:gz") as tar:
        for member, content in members:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def named(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


# --- streams ----------------------------------------------------------------------------------------------------------


def test_a_stream_gives_what_it_may_and_goes_forwards_alone(refused):
    stream = Bounded(io.BytesIO(b"0123456789"), 10, "x")
    assert stream.read(4) + stream.read() == b"0123456789" and stream.read() == b""
    refused(lambda: stream.seek(3), "x: its parts lie in no order")
    short = Bounded(io.BytesIO(b"0123456789"), 9, "x")
    assert short.read(9) == b"012345678"
    refused(lambda: short.read(1), "x: holds more than 9 bytes")
    refused(lambda: Bounded(io.BytesIO(b"0123456789"), 5, "x").seek(8), "holds more than 5")


# --- tar --------------------------------------------------------------------------------------------------------------


def test_a_gzip_bomb_is_left_where_it_is_too_large(tmp_path, monkeypatch, refused):
    monkeypatch.setattr(cifar10, "RECORDS", 4)
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(gzip.compress(bytes(cifar10.MOST)))
    source = cifar10.find(tmp_path)
    refused(lambda: source.read(32), "tar.gz: .*(holds more than|cannot be read|missing)", 8 << 20)
    tar_of(tmp_path / "cifar-10-binary.tar.gz", (named("x/readme"), bytes(cifar10.MOST)))
    refused(lambda: source.read(32), "holds more than 67,108,864 bytes, unpacked", 8 << 20)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, b"S"])
def test_links_devices_and_holes_are_passed_over(kind, tmp_path, monkeypatch, refused):
    monkeypatch.setattr(cifar10, "RECORDS", 4)
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as tar:
        for name in cifar10.BATCHES:
            tar.addfile(named(f"../../{name}.bin", kind, "/etc/passwd"))
    refused(lambda: load_images("cifar10", tmp_path), "data_batch_1, .* missing|cannot be read")


def test_a_tar_that_goes_back_does_not_loop(tmp_path, monkeypatch, refused):
    """A negative size leads back to the header that names it (CVE-2025-8194)."""
    header = bytearray(named("x").tobuf())
    header[124:136] = b"\xff" + (-512 & (1 << 88) - 1).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(gzip.compress(bytes(header) * 4))
    refused(lambda: load_images("cifar10", tmp_path), "cifar-10-binary.tar.gz")


# --- zip --------------------------------------------------------------------------------------------------------------


def zip_of(path, content: bytes, kind=zipfile.ZIP_DEFLATED, name="a.npy"):
    with zipfile.ZipFile(path, "w", kind) as archive:
        archive.writestr(name, content)
    return path


def test_zip_bombs_are_refused_by_their_ratio(tmp_path, refused):
    bomb = zip_of(tmp_path / "a.npz", bytes(SMALL + 1))
    refused(lambda: open_zip(bomb), "67,108,865 bytes unpacked, at most 67,108,864", 4 << 20)
    refused(lambda: load_images(f"npz:{bomb}", tmp_path), "bytes unpacked", 4 << 20)


def test_a_zip_whose_directory_says_less_than_there_is(tmp_path, refused):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.zeros((1000, 100)))
    path = zip_of(tmp_path / "a.npz", stream.getvalue())
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02")
    content[at + 24 : at + 28] = struct.pack("<I", 200)
    path.write_bytes(content)
    refused(lambda: load_npz(path), "Bad CRC|its header claims 800,000 bytes")


@pytest.mark.parametrize("kind", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_other_packings_are_refused(kind, tmp_path, refused):
    path = zip_of(tmp_path / "a.npz", bytes(99), kind)
    refused(lambda: open_zip(path), "not packed by deflate")


# --- arrays of numpy --------------------------------------------------------------------------------------------------


def npy(shape: str, descr: str = "'<f8'", version: bytes = b"\x01\x00", size: int | None = None) -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    length = (len(text) if size is None else size).to_bytes(2 if version[0] == 1 else 4, "little")
    return b"\x93NUMPY" + version + length + text


@pytest.mark.parametrize(
    "content, says",
    [
        (npy("(10**9,)"), "cannot be read|not an array"),
        (npy("(1000000000000,)"), "claims 8,000,000,000,000 bytes, 0 are there"),
        (npy("(1000000, 1000000, 1000000, 1000000)"), "claims 8,000,000"),
        (npy("(-1, 3)"), "a shape of"),
        (npy("(3,)", "'|O'"), "objects of Python"),
        (npy("(1,)", "'|V2000000000'"), "claims 2,000,000,000 bytes"),
        (npy("(3,)", version=b"\x02\x00", size=2**32 - 1), "cannot be read"),
        (npy("(" * 9000), "cannot be read"),
        (npy("(3,)", version=b"\x09\x00"), "cannot be read"),
        (b"", "cannot be read"),
    ],
)  # fmt: skip
def test_headers_that_claim_too_much(content, says, tmp_path, refused):
    refused(lambda: load_npz(zip_of(tmp_path / "a.npz", content)), f"a.npz: a.npy:? .*({says})")
    refused(lambda: load_npy(io.BytesIO(content), len(content), "a.npy"), f"a.npy:.*({says})")


def test_arrays_are_read_as_numpy_reads_them(tmp_path):
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.asfortranarray(np.ones((3, 2), np.uint8)), "c": np.array("é")}
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    found = load_npz(tmp_path / "a.npz")
    assert found.keys() == arrays.keys() and all(np.array_equal(found[k], v) for k, v in arrays.items())
    assert load_npz(tmp_path / "a.npz", ["b", "absent"]).keys() == {"b"}
    assert headers(tmp_path / "a.npz")["a"] == ((2, 3), np.float64)


# --- pickles ----------------------------------------------------------------------------------------------------------


def unpickled(content: bytes) -> np.ndarray:
    return read_pickled(Bounded(io.BytesIO(content), 2 * len(content), "batch"))


def test_a_memo_number_takes_no_table(refused):
    numbers = b"\x80\x02}r\xff\xff\xff\x7f."  # C's unpickler would make a table of 2^31 entries
    with pytest.raises(KeyError):
        unpickled(numbers)


def test_bytes_that_are_not_there_take_no_memory(refused):
    """Found by fuzzing: 851 MiB for a file of 12 kB."""
    tracemalloc.start()
    with pytest.raises(Exception, match="|"):
        unpickled(b"\x80\x05\x96" + struct.pack("<Q", 1 << 30) + b"x.")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_keys_are_texts(refused):
    deep = b")" + b"0" * 0 + b"q\x00" + b"h\x00h\x00\x86q\x00" * 40  # tuples of tuples: to hash them takes 2^40 steps
    refused(lambda: unpickled(b"\x80\x02}" + deep + b"K\x01s."), "keys are no texts")
    refused(lambda: unpickled(b"\x80\x02}(" + deep + b"K\x01u."), "keys are no texts")
    refused(lambda: unpickled(b"\x80\x02(" + deep + b"K\x01d."), "keys are no texts")


def test_text_is_not_encoded_again_and_again(refused):
    text = b"x" * 10_000
    head = b"\x80\x02c_codecs\nencode\nq\x00X" + struct.pack("<I", len(text)) + text + b"q\x01U\x06latin1q\x02"
    refused(lambda: unpickled(head + b"h\x00h\x01h\x02\x86R" * 1000 + b"."), "encodes more text than it holds", 1 << 20)


def test_nothing_but_arrays_is_changed(refused):
    attack = b"\x80\x02cnumpy\ndtype\n}X\x0c\x00\x00\x00__defaults__)s\x86N\x86b."
    with pytest.raises(Exception, match="changes something else|refused|index|setting"):
        unpickled(attack)
    assert np.array_equal(unpickled(pickle.dumps({"data": BATCH}, protocol=2)), BATCH.ravel())


@pytest.mark.parametrize("opcode", [b"\x82\x01", b"P1\n", b"(c__builtin__\nobject\no", b"(i__builtin__\nobject\n"])
def test_needless_opcodes_are_not_known(opcode):
    with pytest.raises((KeyError, InputError)):
        unpickled(b"\x80\x02" + opcode + b".")


# --- tables -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path):
    def table(content: bytes):
        (tmp_path / "t.csv").write_bytes(content)
        return tmp_path / "t.csv"

    return table


def test_lines_without_an_end(table, refused):
    refused(lambda: read_rows(table(b"1," * 600_000), ("a",)), "t.csv line 1: longer than 1,048,576 characters")
    late = b"1,2\n" * 40 + b"1" * (csv_files.MAX_LINE + 2)
    refused(lambda: read_rows(table(late), ("x1", "x2")), "t.csv line 41: longer")


def test_columns_of_one_name_are_found_at_once(table, refused):
    wide = b",".join(b"c%d" % i for i in range(100_000)) + b"\n" + b"1," * 99_999 + b"1\n"
    refused(lambda: read_rows(table(wide), ("a",)), "100,000 columns; a density is of at most", 256 << 20)
    names = b",".join(b"c%d" % i for i in range(9_999)) + b",c7\n" + b"1," * 9_999 + b"2\n"
    refused(lambda: read_rows(table(names), ("c7",)), "two columns are named 'c7'", 256 << 20)


def test_odd_texts(table, refused):
    refused(
        lambda: read_rows(table(b"1,2\n\x00,3\n"), ("x1", "x2")), r"line 2, column x1: is '\\x00', not a finite number"
    )
    refused(lambda: read_rows(table("1,2\n3,4\n".encode("utf-16")), ("x1", "x2")), "not a text file in UTF-8")
    quoted = b'1,2\n"' + b"x" * 200_000 + b'",2\n'
    refused(lambda: read_rows(table(quoted), ("x1", "x2")), "t.csv.*(field|not a finite number)")


def test_values_whose_squares_have_no_sum(table, refused):
    rows = np.random.default_rng(0).normal(size=(40, 2))
    rows[3, 1] = 1e200  # eigenvalues of the correlations did not converge
    np.savez(table(b"").with_suffix(".npz"), rows)
    refused(
        lambda: load_table(f"npz:{table(b'').with_suffix('.npz')}"), r"has a value of 1e\+200, 1e\+100 is too large"
    )
