"""Text, JSON and weights that somebody else wrote: limits, and one line where they are passed."""

import json
import os
import signal
import socket
import struct
import zipfile
from dataclasses import asdict, replace

import pytest
import safetensors.torch
import torch

from gebm import manifest
from gebm.bounded import MAX_CONFIG, MAX_JSON, MAX_LINE, open_regular, read_json, read_json_lines, size_of
from gebm.cli import main
from gebm.commands.runs import SERIAL, _serial
from gebm.config import Config
from gebm.data import Batches
from gebm.errors import InputError
from gebm.model import GEBM, Architecture
from gebm.report.html import data_uri
from gebm.text import printable, show
from gebm.training.trainer import Counters, _restore
from gebm.untrusted import check_plain
from gebm.weights import metadata_of

SMALL = Architecture("dcgan", "dcgan", (1, 8, 8), 3, width=0.02)


def refused(call, says: str) -> None:
    with pytest.raises(InputError, match=says) as error:
        call()
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize(
    "content, says",
    [
        (b"a: &a {lr: 1}\nb: {<<: [*a, *a]}\n", "no merge keys"),
        (b"m0: &m0 {a: 1}\n" + b"".join(b"m%d: &m%d {<<: [%s]}\n" % (i, i, b", ".join([b"*m%d" % (i - 1)] * 9))
         for i in range(1, 12)), "no merge keys"),  # 9^11 keys
        (b"l0: &l0 [lol]\n" + b"".join(b"l%d: &l%d [%s]\n" % (i, i, b", ".join([b"*l%d" % (i - 1)] * 9))
         for i in range(1, 12)), "unknown key l0"),  # 9^11 words
        (b"lr: " + b"[" * 60_000, "not valid YAML"),
        (b"# " + b"x" * MAX_CONFIG, "larger than 65,536 bytes"),
        (b"lr: 0x" + b"f" * 9000, "lr .a int of many digits. is not allowed"),
        (b"lr: !!python/object/apply:os.system [id]", "not valid YAML: could not determine a constructor"),
        (b"\xff\xfe\x00", "not valid YAML"),
    ],
)  # fmt: skip
def test_configurations(content, says, tmp_path):
    (tmp_path / "c.yaml").write_bytes(content)
    refused(lambda: Config.load(tmp_path / "c.yaml"), says)


def test_json(tmp_path):
    file = tmp_path / "a.json"
    for content, says in [
        ("[" * 100_000, "nested too deeply"), ("[1]", "an object is expected"), ("{", "not a readable JSON"),
        (" " * (MAX_JSON + 1), "larger than 16,777,216 bytes"), ('{"a": ' + "9" * 5000 + "}", "not a readable JSON"),
    ]:  # fmt: skip
        file.write_text(content)
        refused(lambda: read_json(file), f"a.json: .*{says}")
    refused(lambda: read_json(tmp_path / "absent"), "absent: not a readable JSON")


def test_json_lines(tmp_path):
    file = tmp_path / "stats.jsonl"
    file.write_text('{"a": 1}\n{"a": 2}\n{"a": ')
    assert list(read_json_lines(file)) == [{"a": 1}, {"a": 2}]  # the last was cut by a kill
    for line, says in [("{]}", "not JSON"), ('{"a": [1]}', "not an object of"), ("x" * (MAX_LINE + 2), "usual length")]:
        file.write_text(f'{{"a": 1}}\n{line}\n')
        refused(lambda: list(read_json_lines(file)), f"stats.jsonl line 2: .*{says}")


def test_links_and_devices(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_text("")
    check_plain(tmp_path / "a")
    check_plain(tmp_path / "absent")
    (tmp_path / "a" / "b" / "d").symlink_to(tmp_path)
    refused(lambda: check_plain(tmp_path / "a"), "b/d: a link")
    refused(lambda: check_plain(tmp_path / "a" / "b" / "d"), "a link")


@pytest.fixture
def no_waiting():
    """Opening a pipe that nobody writes to would otherwise end no test."""
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("waited for a pipe"))
    signal.alarm(20)
    yield
    signal.alarm(0)


def read_image(path):
    from gebm.data.transform import as_they_are

    as_they_are([path], (1, 8, 8))


def read_text_rows(path):
    from gebm.data.csv_files import _text_of

    _text_of(path)


@pytest.mark.parametrize("kind", ["pipe", "socket", "/dev/zero"])
@pytest.mark.parametrize(
    "read", [open_regular, read_json, read_json_lines, metadata_of, Config.load, read_image, read_text_rows, data_uri]
)
def test_pipes_sockets_and_devices_are_not_waited_for(read, kind, tmp_path, no_waiting):
    file = tmp_path / "a.png"
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(str(file))
    else:
        file.symlink_to(kind)
    refused(lambda: [*read(file)], "a.png: a pipe, a socket or a device")  # one reads line by line


@pytest.mark.parametrize("name", ["manifest.json", "base.safetensors"])
def test_a_checkpoint_with_a_pipe_is_damaged(name, saved, no_waiting):
    manifest.write_manifest(saved)
    (saved / name).unlink()
    os.mkfifo(saved / name)
    assert f"{name} is damaged" in manifest.damage(saved)


@pytest.mark.parametrize("text", ["9" * 4300, "9" * 5000, "pipe", "x"])
def test_serial_numbers_that_no_run_has_are_passed_over(text, tmp_path, no_waiting):
    (tmp_path / "a").mkdir()
    os.mkfifo(tmp_path / "a" / SERIAL) if text == "pipe" else (tmp_path / "a" / SERIAL).write_text(text)
    assert _serial(tmp_path / "a") == 0


def sparse(file, size):
    """Make a file as large as `size` by a hole at its end."""
    with open(file, "ab") as stream:
        stream.truncate(size)
    if size_of(file) == size:
        pytest.skip("this file system does not tell holes from zeros")


def test_holes_are_not_counted(tmp_path):
    file = tmp_path / "a"
    file.write_bytes(b"x" * 8192)
    assert size_of(file) == 8192
    sparse(file, 10 << 20)
    assert size_of(file) == 8192 and len(open_regular(file).read()) == 10 << 20
    sparse(file, 65 << 20)
    refused(lambda: open_regular(file), "a: of its 68,157,440 bytes 8,192 are stored, the rest are holes")
    with open(file, "r+b") as stream:
        stream.seek(33 << 20)
        stream.write(b"x" * (5 << 20))
    assert size_of(file) == 8192 + (5 << 20)
    open_regular(file).close()


def test_a_manifest_has_no_holes_hashed(saved):
    sparse(saved / "energy.safetensors", 60 << 30)
    entry = {"bytes": 60 << 30, "sha256": "0" * 64}
    (saved / "manifest.json").write_text(json.dumps({"files": {"energy.safetensors": entry}}))
    assert "the rest are holes" in manifest.damage(saved)
    refused(lambda: GEBM.load(saved), "the rest are holes")


def with_hole(file, size):
    """Add a tensor of zeros to weights that is a hole in the file."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, tensors = json.loads(content[8 : 8 + length]), content[8 + length :]
    header["hole"] = {"dtype": "U8", "shape": [size], "data_offsets": [len(tensors), len(tensors) + size]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(struct.pack("<Q", len(text)) + text + tensors)
    sparse(file, 8 + len(text) + len(tensors) + size)


def test_holes_buy_no_network(saved):
    """Weights of some kB, made longer by a hole, do not pay for a network of a GB."""
    model = GEBM.load(saved)
    model.architecture = replace(SMALL, width=4000.0)
    model.save(saved)
    for name in ("base.safetensors", "energy.safetensors"):
        with_hole(saved / name, 60 << 20)  # which times 16 would do
    refused(lambda: GEBM.load(saved), "far smaller than the networks")


def test_holes_buy_no_archive(tmp_path):
    from gebm.data.arrays import load_npz

    file = tmp_path / "a.npz"
    sparse(file, 60 << 20)
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as member:
        for _ in range(80):
            member.write(bytes(1 << 20))
    refused(lambda: load_npz(file), "bytes unpacked, at most 67,108,864 are read")


# --- what reaches the terminal ----------------------------------------------------------------------------------------


def test_no_name_moves_the_cursor(tmp_path, capsys):
    assert printable("a\x1b[2Jb\nc\u202ed\ud800é") == "a\\x1b[2Jb\nc\\u202ed\\ud800é"
    (tmp_path / "t.csv").write_text("\x1b[31ma,b\n1,2\nx,3\n")
    assert main(["train", "--dataset", f"csv:{tmp_path / 't.csv'}", "--log_dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "\x1b" not in error and "column \\x1b[31ma" in error


def test_a_number_of_any_length_can_be_shown():
    assert show(16**9000) == "(a int of many digits)"


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    GEBM.build(SMALL).save(tmp_path)
    return tmp_path


@pytest.mark.parametrize("size", [2**63, 2**40, 100 << 20, 17 << 20])
def test_safetensors_headers(size, saved):
    file = saved / "base.safetensors"
    file.write_bytes(struct.pack("<Q", size) + file.read_bytes()[8:])
    refused(lambda: GEBM.load(saved), "its header claims")


@pytest.mark.parametrize(
    "fields, says",
    [
        ({"width": 1000.0, "shape": (1, 64, 64)}, "far smaller than the networks"),  # channels: 512,000 x 256,000 x 16
        ({"latent_dim": 1 << 20, "width": 1.0}, "far smaller than the networks"),
        ({"base": "maf", "energy": "maf", "shape": (1 << 20,), "latent_dim": 1 << 20}, "far smaller than the networks"),
        ({"base": "nvp", "energy": "mlp", "shape": (2,), "latent_dim": 2, "blocks": 1 << 20}, "far smaller"),
        ({"width": float("nan")}, "no architecture in its header"),
        ({"width": 0}, "no architecture"), ({"width": 1e300}, "no architecture"),
        ({"blocks": 1 << 40}, "no architecture"),
        ({"shape": 3}, "no architecture"), ({"shape": [1, 8, 8, 8]}, "no architecture"), ({"bn": 1}, "no architecture"),
        ({"dropout": 2.0}, "no architecture"), ({"base": "os:system"}, "imported only if you name it"),
    ],
)  # fmt: skip
def test_architectures_that_their_weights_are_not_of(fields, says, saved):
    for name in ("base", "energy"):
        tensors = safetensors.torch.load_file(saved / f"{name}.safetensors")
        text = json.dumps({**asdict(SMALL), **fields})
        safetensors.torch.save_file(tensors, saved / f"{name}.safetensors", {"gebm": text})
    refused(lambda: GEBM.load(saved), says)


def test_numbers_of_another_kind(saved):
    file = saved / "energy.safetensors"
    with safetensors.safe_open(file, "pt") as stored:
        metadata = stored.metadata()
    tensors = safetensors.torch.load_file(file)
    tensors["log_partition"] = tensors["log_partition"].to(torch.complex64)
    safetensors.torch.save_file(tensors, file, metadata)
    refused(lambda: GEBM.load(saved), "tensor log_partition does not fit")


def test_columns_out_of_range(tmp_path):
    """Found by fuzzing: they failed when the first row was made."""
    GEBM.build(Architecture("nvp", "mlp", (2,), 2, blocks=1)).save(tmp_path)
    file = tmp_path / "base.safetensors"
    with safetensors.safe_open(file, "pt") as stored:
        metadata = stored.metadata()
    tensors = safetensors.torch.load_file(file)
    tensors["maps.0.inside"] += 7
    safetensors.torch.save_file(tensors, file, metadata)
    refused(lambda: GEBM.load(tmp_path), "tensor maps.0.inside does not fit the base 'nvp'")


# --- states -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields", [{"stage": "x"}, {"g_step": -1}, {"g_step": None}, {"e_step": 1.5}, {"images": True}]
)
def test_counters_that_no_run_has(fields):
    with pytest.raises(ValueError, match="counters"):
        Counters(**fields)


@pytest.mark.parametrize("fields", [{"position": 11}, {"position": -1}, {"seed": -1}, {"seed": 2**64}])
def test_places_outside_the_data(fields):
    """Beyond the end, the next batch would be looked for without end."""
    batches = Batches(torch.zeros(10, 1, 8, 8, dtype=torch.uint8), 4)
    with pytest.raises(ValueError, match="outside the data"):
        batches.load_state_dict({**batches.state_dict(), **fields})


def test_moments_that_no_optimiser_keeps():
    """Found by fuzzing: they failed at the first step."""
    weight = torch.nn.Parameter(torch.zeros(2, 3))
    optimizer = torch.optim.Adam([weight])
    weight.sum().backward()
    optimizer.step()
    whole = optimizer.state_dict()
    _restore(optimizer, whole)
    moments = whole["state"][0]
    for damaged in (
        {**moments, "exp_avg": torch.zeros(3)}, {**moments, "step": moments["exp_avg"]}, {**moments, "exp_avg": 1.0},
        {name: moment for name, moment in moments.items() if name != "exp_avg"},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="moments"):
            _restore(torch.optim.Adam([weight]), {**whole, "state": {0: damaged}})


def test_a_page_of_an_evaluation_that_is_not_whole(tmp_path):
    """Warnings were made outside of what may fail."""
    from gebm.commands.report import collect
    from gebm.report import render

    replace(Config(mode="sample", dataset="gone:gone")).save(tmp_path / "config.yaml")
    (tmp_path / "evaluation.json").write_text('{"kale_gap": {}, "kale": {}}')
    (tmp_path / "summary.json").write_text('{"steps": 3}')
    report = collect(tmp_path, Config.load(tmp_path / "config.yaml"))
    assert "Run" in render(report) and "KeyError" in report.missing["Figures"] + report.missing["Samples"]
