"""What is fuzzed: by name, the sound files to damage and the call that reads one.

A call may return, or raise `InputError` with one line; `FloatingPointError` and `OSError`, which the commands turn into
a line and exit code 1, count too. Whatever else comes out of it is a failure.
"""

import contextlib
import gzip
import io
import json
import os
import pickle
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.torch
import torch
import yaml
from hypothesis import strategies as st
from mutate import with_png_sums
from PIL import Image

from gebm.cli import _subjects
from gebm.commands.build import build_trainer
from gebm.commands.chains import check_sampler
from gebm.commands.checks import check_flags, check_kind, check_scheduler
from gebm.commands.evaluate import _read_npz, _setting
from gebm.commands.pairs import load_pair
from gebm.commands.report import _about, collect
from gebm.commands.runs import check_new_run
from gebm.commands.tables import settled
from gebm.config import Config
from gebm.data import celeba, cifar10, imagenet32, labelled_digits, load_table, npz, read_rows, uci
from gebm.data.images import ImageData
from gebm.data.transform import as_they_are, decoded, files_from
from gebm.data.units import load_units, save_units
from gebm.errors import InputError
from gebm.metrics.resnet56 import ResNet56, find_weights
from gebm.model import GEBM, Architecture
from gebm.parsing import parse
from gebm.report import render
from gebm.samplers import Langevin
from gebm.samplers.storage import load_chain, save_chain
from gebm.training.checkpoint import load_checkpoint, save_checkpoint
from gebm.training.trainer import Trainer

__all__ = ["TARGETS", "Target", "shrink"]

RECORDS = 4
RNG = np.random.default_rng(0)
ROOT = Path(__file__).resolve().parents[2]


class Target(NamedTuple):
    """Something that reads a file.

    Attributes:
        seeds: seeds() is the sound files.
        call: call(content, folder) reads one, in an empty folder.
        share: how many inputs it gets, beside the others.
        grammar: also makes inputs, by Hypothesis.
    """

    seeds: Callable[[], list[bytes]]
    call: Callable[[bytes, Path], object]
    share: float = 1.0
    grammar: st.SearchStrategy[bytes] | None = None


# --- configurations and command lines ---------------------------------------------------------------------------------

TEXTS = st.one_of(st.text(max_size=20), st.sampled_from(["auto", "os:system", "csv:/dev/zero", "..", "~", "yes", "*a"]))
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3))
NAMES = st.one_of(st.sampled_from(sorted(Config.__dataclass_fields__)), TEXTS)


def dumped(values: dict) -> bytes:
    return yaml.safe_dump(values, allow_unicode=True).encode("utf-8", "surrogatepass")


def config_files() -> list[bytes]:
    files = [path.read_bytes() for path in sorted((ROOT / "configs").rglob("*.yaml"))]
    levels = "".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]\n" for i in range(1, 9))
    merges = "".join(f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 9)}]}}\n" for i in range(1, 9))
    laughs = f"l0: &l0 [lol]\n{levels}".encode()
    return [*files, Config().to_yaml().encode(), laughs, f"m0: &m0 {{a: 1}}\n{merges}".encode(), b"lr: " + b"[" * 9000]


def read_config(content: bytes, folder: Path) -> None:
    (folder / "config.yaml").write_bytes(content)
    config, given = parse(["--config", str(folder / "config.yaml"), "--log_dir", str(folder)], "train")
    check(config, given)


def check(config: Config, given: frozenset[str]) -> None:
    """What the commands settle before they work."""
    config, given = settled(config, given)
    check_kind(config, given)
    check_flags(config)
    check_scheduler(config, given)
    check_sampler(config, config.n_samples)
    check_new_run(config)


def command_lines() -> list[bytes]:
    lines = [
        "train --config configs/training.yaml --dataset cifar10",
        "sample --dataset=cifar10 --latent_sampler=langevin --lmc_gamma=0.0001",
        "evaluate runs/a b.npz --dataset digits --eval_fid --temperature auto",
        "score new.csv --g_path runs/mine --output out.csv",
        "train —device -2 --milestone 1,2,3 --use_scheduler --scheduler MultiStepLR --log_name x",
        "demo --seed 3 --bn --dropout .5 --dataset toy:moons",
    ]
    return [line.replace(" ", "\n").encode() for line in lines]


def run_command_line(content: bytes, folder: Path) -> None:
    mode, *argv = [os.fsdecode(word) for word in content.split(b"\n")]
    mode = mode if mode in ("train", "sample", "evaluate", "score", "demo") else "train"
    subjects, argv = _subjects(argv, mode)
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            check(*parse(argv, mode))
        except SystemExit as stop:  # of --help
            assert not stop.code


WORDS = st.one_of(NAMES.map(lambda name: f"--{name}"), TEXTS, st.integers().map(str), st.floats().map(str))
LINES = st.lists(WORDS, max_size=8).map(lambda words: "\n".join(["train", *words]).encode("utf-8", "surrogatepass"))


# --- weights, checkpoints, chains -------------------------------------------------------------------------------------

PAIRS = [("dcgan", "dcgan", (1, 8, 8), 3), ("sngan", "resnet-sn", (3, 8, 8), 3)]
PAIRS += [(flow, energy, (2,), 2) for flow, energy in [("nvp", "mlp"), ("maf", "made"), ("mogmaf", "gaussian")]]


def weights() -> list[bytes]:
    """Pairs in one file each: length of the base's file, the base's, the energy's."""
    found = []
    for base, energy, shape, latent in PAIRS:
        with scratch() as folder:
            GEBM.build(Architecture(base, energy, shape, latent, width=0.02, blocks=1)).save(folder)
            found.append(joined(folder, *WEIGHTS))
    return found


def read_weights(content: bytes, folder: Path) -> None:
    split(content, folder, *WEIGHTS)
    config, given = parse(["--from_untrusted", str(folder), "--device", "-2"], "sample")
    model, *_ = load_pair(config, given)
    assert model.sample(2, steps=1).shape[0] == 2


def trainer_of(flags: str) -> Trainer:
    config, given = parse(f"--dataset digits --device -2 --g_model dcgan --d_model dcgan {flags}".split(), "train")
    digits, _ = labelled_digits()
    data = ImageData("digits", digits[:40], digits[40:60], "key")
    return build_trainer(config, given, data, torch.device("cpu"))[0]


@cache
def sound_pairs() -> list[tuple[dict, dict]]:
    """Of each of `PAIRS` the tensors of the base and of the energy, as they are stored."""
    found = []
    for pair in weights():
        with scratch() as folder:
            split(pair, folder, *WEIGHTS)
            found.append(tuple(safetensors.torch.load_file(folder / name) for name in WEIGHTS))
    return found


def architectures() -> list[bytes]:
    return [
        json.dumps(asdict(Architecture(base, energy, shape, latent, width=0.02, blocks=1))).encode()
        for base, energy, shape, latent in PAIRS
    ]


def read_architecture(content: bytes, folder: Path) -> None:
    """The text of a header over sound tensors."""
    text = content.decode("utf-8", "replace").replace("\0", "")
    for name, tensors in zip(WEIGHTS, sound_pairs()[len(content) % len(PAIRS)]):
        safetensors.torch.save_file(tensors, folder / name, {"gebm": text})
    load_pair(*parse(["--from_untrusted", str(folder), "--device", "-2"], "sample"))


WEIGHTS = ("base.safetensors", "energy.safetensors")
NUMBERS = st.one_of(st.integers(-1, 10), st.integers(), st.floats(), st.just(10**6))
ARCHITECTURES = st.fixed_dictionaries(
    {},
    optional={
        "base": st.sampled_from(["dcgan", "sngan", "resnet-sn", "nvp", "maf", "mogmaf", "gaussian", "os:system"]),
        "energy": st.sampled_from(["dcgan", "sngan", "mlp", "nvp", "maf", "os:system", ""]), "shape": st.lists(NUMBERS),
        "latent_dim": NUMBERS, "prior": TEXTS, "width": NUMBERS, "blocks": NUMBERS, "bn": st.booleans(),
        "dropout": NUMBERS,
    },
).map(lambda fields: json.dumps({**json.loads(architectures()[0]), **fields}).encode())  # fmt: skip


TINY = "--Z_dim 3 --width .03 --b_size 4 --lr 1e-3"


def checkpoint_files() -> list[bytes]:
    found = []
    for flags in (TINY, f"{TINY} --ema .9"):
        trainer = trainer_of(flags)
        for _ in range(2):
            trainer.energy_step(), trainer.base_step()
        with scratch() as folder:
            found.append(joined(save_checkpoint(folder, trainer, ""), *CHECKPOINT))
    return found


CHECKPOINT = ("training.json", "training.safetensors", "base.safetensors", "energy.safetensors")


def resume(content: bytes, folder: Path) -> None:
    split(content, folder, *CHECKPOINT)
    trainer = trainer_of(f"{TINY} --ema .9" if len(content) % 2 else TINY)
    load_checkpoint(folder, trainer)
    trainer.energy_step(), trainer.base_step()


@cache
def sound_checkpoint() -> bytes:
    return checkpoint_files()[0]


def states() -> list[bytes]:
    return [sound_checkpoint().split(MARK)[0]]


def resume_state(content: bytes, folder: Path) -> None:
    """A damaged training.json beside sound files."""
    split(sound_checkpoint(), folder, *CHECKPOINT)
    written(content, folder / "training.json")
    trainer = trainer_of(TINY)
    load_checkpoint(folder, trainer)
    trainer.energy_step(), trainer.base_step()


def chains() -> list[bytes]:
    with scratch() as folder:
        model = GEBM.build(Architecture("dcgan", "dcgan", (1, 8, 8), 3, width=0.02))
        target, generator = model.posterior().frozen(), torch.Generator().manual_seed(0)
        save_chain(folder / "c", Langevin(0.1).init(target.start(4, generator), target), 3, generator)
        return [(folder / "c").read_bytes()]


def read_chain(content: bytes, folder: Path) -> None:
    load_chain(written(content, folder / "chain"))


def resnet() -> list[bytes]:
    try:
        return [find_weights(None, "nowhere").read_bytes()]
    except InputError:
        stream = io.BytesIO()
        torch.save({"state_dict": ResNet56().state_dict()}, stream)
        return [stream.getvalue()]


# --- data -------------------------------------------------------------------------------------------------------------

PIXELS = RNG.integers(256, size=(RECORDS, 3072), dtype=np.uint8)


def shrink() -> None:
    """In the process that is to read: batches of four images."""
    cifar10.RECORDS = RECORDS


def pickles() -> list[bytes]:
    raw = PIXELS.tobytes()
    python2 = (
        b"\x80\x02}q\x01U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01(I4\n"
        b"I3072\ntcnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89T" + len(raw).to_bytes(4, "little") + raw + b"tbsU\x06labels](K\x03K\x05es."
    )
    ours = [pickle.dumps({b"data": PIXELS, "labels": [1, 2]}, protocol=p) for p in range(2, 6)]
    return [python2, *ours]


def read_cifar_pickle(content: bytes, folder: Path) -> None:
    cifar10._batch(io.BytesIO(content), len(content), folder / "data_batch_1")


def binaries() -> list[bytes]:
    return [np.concatenate([np.zeros((RECORDS, 1), np.uint8), PIXELS], 1).tobytes()]


def read_cifar_binary(content: bytes, folder: Path) -> None:
    place = folder / "cifar-10-batches-bin"
    place.mkdir()
    for name in cifar10.BATCHES:
        (place / f"{name}.bin").write_bytes(binaries()[0])
    (place / "data_batch_2.bin").write_bytes(content)
    read_source(cifar10.find(folder))


def tars() -> list[bytes]:
    """Archives, not yet packed."""
    found = []
    for suffix, batch in ((".bin", binaries()[0]), ("", pickles()[0])):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as tar:
            for name in cifar10.BATCHES:
                member = tarfile.TarInfo(f"cifar-10-batches/{name}{suffix}")
                member.size = len(batch)
                tar.addfile(member, io.BytesIO(batch))
        found.append(stream.getvalue())
    return found


def read_tar(content: bytes, folder: Path) -> None:
    read_packed(gzip.compress(content, 1), folder)


def read_packed(content: bytes, folder: Path) -> None:
    (folder / "cifar-10-binary.tar.gz").write_bytes(content)
    read_source(cifar10.find(folder))


def packed() -> list[bytes]:
    return [gzip.compress(content) for content in tars()] + [gzip.compress(bytes(100 << 20))]


def read_source(source: object) -> None:
    for images in source.read(32):
        for _ in images.blocks(0):
            pass


def zips() -> list[bytes]:
    """Batches and pictures in one archive, stored and deflated."""
    found = []
    for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", kind) as archive:
            archive.writestr("val_data", pickles()[2])
            for i in range(3):
                archive.writestr(f"img_align_celeba/00000{i}.jpg", picture("JPEG", "RGB", 20 + i))
        found.append(stream.getvalue())
    return found


def read_imagenet_zip(content: bytes, folder: Path) -> None:
    place = written(content, folder / "val.zip")
    for _ in imagenet32._images(place, {"val_data": RECORDS}, 32).blocks(0):
        pass


def read_celeba_zip(content: bytes, folder: Path) -> None:
    (folder / "celeba").mkdir()
    written(content, folder / "celeba" / "img_align_celeba.zip")
    (folder / "celeba" / "list_eval_partition.txt").write_text("".join(f"00000{i}.jpg {i}\n" for i in range(3)))
    read_source(celeba.find(folder))


def read_partition(content: bytes, folder: Path) -> None:
    (folder / "celeba").mkdir()
    written(zips()[0], folder / "celeba" / "img_align_celeba.zip")
    written(content, folder / "celeba" / "list_eval_partition.txt")
    celeba.find(folder)


def arrays(**named: np.ndarray) -> Callable[[], list[bytes]]:
    """The named arrays as .npz, packed and not."""

    def seeds() -> list[bytes]:
        found = []
        for save in (np.savez, np.savez_compressed):
            stream = io.BytesIO()
            save(stream, **named)
            found.append(stream.getvalue())
        return found

    return seeds


def inner(name: str, read: Callable[[bytes, Path], object]) -> Callable[[bytes, Path], object]:
    """Reads an .npz whose one damaged array lies in an archive with the right checksums."""

    def call(content: bytes, folder: Path) -> object:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, content)
        return read(stream.getvalue(), folder)

    return call


def array_of(array: np.ndarray) -> Callable[[], list[bytes]]:
    def seeds() -> list[bytes]:
        found = []
        for version in ((1, 0), (2, 0), (3, 0)):
            stream = io.BytesIO()
            np.lib.format.write_array(stream, array, version)
            found.append(stream.getvalue())
        return found

    return seeds


IMAGES = RNG.integers(256, size=(6, 8, 8), dtype=np.uint8)
ROWS = RNG.normal(size=(40, 3))


def read_npz_images(content: bytes, folder: Path) -> None:
    read_source(npz.find(written(content, folder / "a.npz")))


def read_npz_rows(content: bytes, folder: Path) -> None:
    load_table(f"npz:{written(content, folder / 'a.npz')}")


def read_npy(content: bytes, folder: Path) -> None:
    uci._array(written(content, folder / "a.npy"))


def read_samples(content: bytes, folder: Path) -> None:
    _read_npz(written(content, folder / "samples.npz"))


def units() -> list[bytes]:
    with scratch() as folder:
        np.savez(folder / "a.npz", ROWS)
        save_units(folder, load_table(f"npz:{folder / 'a.npz'}"))
        return [(folder / "table.npz").read_bytes()]


def read_units(content: bytes, folder: Path) -> None:
    written(content, folder / "table.npz")
    load_units(folder)


def tables() -> list[bytes]:
    rows = "".join(",".join(f"{x:.3f}" for x in row) + "\n" for row in ROWS)
    quoted = 'a;"b c";"d ""e"""\n' + rows.replace(",", ";")
    utf16 = ("a,b\n" + rows).encode("utf-16")
    long = ",".join("1" for _ in range(100_000)) + "\n"
    return [rows.encode(), quoted.encode(), utf16, rows.replace(",", "\t").encode("utf-8-sig"), (long * 3).encode()]


def read_table(content: bytes, folder: Path) -> None:
    load_table(f"csv:{written(content, folder / 't.csv')}")
    read_rows(folder / "t.csv", ("x1", "x2", "x3"))


CELLS = st.one_of(st.floats().map(str), st.integers().map(str), st.text(max_size=6), st.just(""))
RAGGED = st.lists(st.lists(CELLS, max_size=4), max_size=30)
EVEN = st.lists(
    st.lists(st.one_of(st.floats(allow_nan=False), st.integers()).map(str), min_size=2, max_size=2), min_size=22
)
CSV = st.one_of(RAGGED, EVEN).map(lambda rows: "\n".join(map(",".join, rows)).encode("utf-8", "surrogatepass"))


def hepmass() -> list[bytes]:
    header = ",".join(["# label", *(f"f{i}" for i in range(27))]) + "\n"
    rows = "".join(",".join(f"{x:.3f}" for x in [i % 2, *RNG.normal(size=27)]) + "\n" for i in range(30))
    return [(header + rows).encode()]


def read_hepmass(content: bytes, folder: Path) -> None:
    written(gzip.compress(content, 1), folder / "1000_train.csv.gz")
    written(gzip.compress(hepmass()[0], 1), folder / "1000_test.csv.gz")
    uci.hepmass(folder)


def read_miniboone(content: bytes, folder: Path) -> None:
    written(content, folder / "MiniBooNE_PID.txt")
    uci.miniboone(folder)


def miniboone() -> list[bytes]:
    rows = "".join(" ".join(f"{x:.3e}" for x in row) + "\n" for row in RNG.normal(size=(30, 5)))
    return [f" 20 10\n{rows}".encode()]


# --- pictures ---------------------------------------------------------------------------------------------------------


def picture(kind: str, mode: str = "RGB", size: int = 24, **options: object) -> bytes:
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode if mode in ("L", "RGB", "RGBA") else "RGB"]
    image = Image.fromarray(RNG.integers(256, size=(size, size + 3, *channels), dtype=np.uint8))
    stream = io.BytesIO()
    image.convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def pictures(kind: str, *modes: str, **options: object) -> Callable[[], list[bytes]]:
    return lambda: [picture(kind, mode, **options) for mode in modes]


def read_picture(content: bytes, folder: Path) -> None:
    path = written(content, folder / "x.png")
    for _ in decoded(1, lambda start: files_from([path], start), 8).blocks(0):
        pass
    with contextlib.suppress(InputError):  # of another size
        as_they_are([path], (3, 24, 27))


# --- runs -------------------------------------------------------------------------------------------------------------

STATS = "".join(
    json.dumps(
        {"stage": "joint", "g_step": i, "e_step": 5 * i, "refine_step": 0, "kale": 0.1 * i, "c": 0.2, "lr": 1e-3}
    )
    + "\n"
    for i in range(1, 4)
)
SUMMARY = {
    "sampler": "langevin", "beta": 1.0, "beta_ramp": 0, "steps": 5, "gamma": 0.1, "kappa": None, "splitting": None,
    "leapfrog": None, "step_size": 0.05, "step_decay": [0.1, 200], "adapted": None, "seed": 0, "n_fake": 6,
    "acceptance": 1.0, "nonfinite": 0.0, "moves": True, "mixed": False, "seconds": 1.0, "evaluations_per_s": 30.0,
    "ess_per_s": 1.0, "log_partition": None, "importance_relative_ess": 0.5, "energy_start": 0.1, "energy_end": 0.2,
    "diagnostics": {
        "rhat_energy": 1.0, "rhat_projection": 1.1, "ess_per_1000_evaluations": 3.0, "ess_energy": 4.0,
        "left_start": 0.5,
    },
    "on_floor": 0.0, "energy_trace": {"0": 0.1, "5": 0.2}, "features": None, "warning": "",
    "curve": {"0": {"value": 1.0, "ci": [0.9, 1.1]}, "5": {"value": 0.5, "ci": [0.4, 0.6]}},
}  # fmt: skip


def runs() -> list[bytes]:
    config = Config(mode="sample", dataset="digits", n_samples=6, num_sampler_steps=5).to_yaml()
    with scratch() as folder:
        (folder / "config.yaml").write_text(config)
        (folder / "stats.jsonl").write_text(STATS)
        (folder / "summary.json").write_text(json.dumps(SUMMARY))
        (folder / "evaluation.json").write_text(json.dumps({"kale_gap": {"value": 0.1, "se": 0.2}, "kale": {}}))
        return [joined(folder, *RUN)]


RUN = ("config.yaml", "stats.jsonl", "summary.json", "evaluation.json")


def read_run(content: bytes, folder: Path) -> None:
    """The page of a run, without its data, which are too slow to look at ten thousand times."""
    split(content, folder, *RUN)
    config = replace(
        Config.load(folder / "config.yaml"), data_path=str(folder), g_path="", d_path="", dataset="gone:gone"
    )
    _setting(folder / "summary.json")
    render(collect(folder, config, (), True))
    _about(folder, config, None)


# --- files ------------------------------------------------------------------------------------------------------------


def written(content: bytes, path: Path) -> Path:
    path.write_bytes(content)
    return path


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp())
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


MARK = b"\n--8<-- next file --8<--\n"


def joined(folder: Path, *names: str) -> bytes:
    return MARK.join((folder / name).read_bytes() for name in names)


def split(content: bytes, folder: Path, *names: str) -> None:
    """Writes the files that `joined` put together; damage to the marks makes them run into each other."""
    for name, part in zip(names, content.split(MARK)):
        (folder / name).write_bytes(part)


TARGETS: dict[str, Target] = {
    "config YAML": Target(config_files, read_config, 2, st.dictionaries(NAMES, VALUES, max_size=8).map(dumped)),
    "command line": Target(command_lines, run_command_line, 2, LINES),
    "weights": Target(weights, read_weights, 2),
    "checkpoint": Target(checkpoint_files, resume, 1),
    "weights, header mended": Target(architectures, read_architecture, 2, ARCHITECTURES),
    "checkpoint, tensors sound": Target(states, resume_state, 2),
    "chain": Target(chains, read_chain),
    "resnet56 weights": Target(resnet, lambda content, folder: ResNet56.from_file(written(content, folder / "w")), 0.3),
    "CIFAR pickle": Target(pickles, read_cifar_pickle, 2),
    "CIFAR binary": Target(binaries, read_cifar_binary, 0.3),
    "CIFAR tar": Target(tars, read_tar, 1.5),
    "CIFAR tar.gz": Target(packed, read_packed, 0.5),
    "ImageNet32 zip": Target(zips, read_imagenet_zip),
    "CelebA zip": Target(zips, read_celeba_zip),
    "CelebA partition": Target(lambda: [b"000000.jpg 0\n000001.jpg 1\n000002.jpg 2\n"], read_partition, 0.3),
    "PNG": Target(pictures("PNG", "RGB", "L", "RGBA", "P"), read_picture),
    "PNG, sums mended": Target(
        pictures("PNG", "RGB", "L", "RGBA", "P"), lambda content, folder: read_picture(with_png_sums(content), folder)
    ),
    "JPEG": Target(pictures("JPEG", "RGB", "L"), read_picture),
    "WebP": Target(pictures("WEBP", "RGB", "RGBA"), read_picture),
    "BMP": Target(pictures("BMP", "RGB", "L", "P"), read_picture),
    "GIF": Target(pictures("GIF", "RGB", "L"), read_picture),
    "TIFF": Target(pictures("TIFF", "RGB", "L", "RGBA"), read_picture),
    "npz of images": Target(arrays(train=IMAGES, test=IMAGES[:2]), read_npz_images),
    "npz of images, sums mended": Target(array_of(IMAGES), inner("a.npy", read_npz_images)),
    "npz of rows": Target(arrays(a=ROWS), read_npz_rows),
    "npz of rows, sums mended": Target(array_of(ROWS), inner("a.npy", read_npz_rows)),
    "npy": Target(array_of(ROWS), read_npy),
    "npz of samples": Target(arrays(samples=IMAGES[:, None], base=IMAGES[:, None]), read_samples),
    "npz of a run's table": Target(units, read_units),
    "CSV": Target(tables, read_table, 2, CSV),
    "HepMass": Target(hepmass, read_hepmass, 0.5),
    "MiniBooNE": Target(miniboone, read_miniboone, 0.5),
    "run": Target(runs, read_run, 0.7),
}
