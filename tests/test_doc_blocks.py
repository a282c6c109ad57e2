"""Every command and every Python block of the README and of docs/ is tried, in order, a page in a folder of its own.

A `gebm` command is parsed as it stands by the real parser, then run with `SMALL` settings after its own, which win.
Python blocks of a page share their names, as they would in one session, and run as they stand.
What a page reads that a reader would have (pictures, a table, the demo's run) is made small by `world`. Other
programs: scripts of examples/ and benchmarks/ must be there (tests of their own run them), targets of make and extras
of pip must exist. Commands in a line of text are parsed, no more. What is left out is in `SKIPPED`, which must be
exact.
"""

import contextlib
import io
import re
import shlex
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from gebm.cli import COMMANDS, _subjects, main
from gebm.config import Config
from gebm.data import cifar10
from gebm.flags import by_name
from gebm.parsing import parse

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAMS = ("gebm", "python", "make", "pip")
NOT_RUN = ("text", "bibtex", "yaml", "toml", "json", "csv")  # languages of blocks that nothing could run

SKIPPED = {
    "source .venv/bin/activate": "make test has done so, or the like",
    'eval "$(gebm --completion bash)"': "run by test_completion.py",
    'eval "$(gebm --completion zsh)"': "run by test_completion.py",
    "gebm convert out --g_path g.pth --d_path d.pth": "weights of the authors' code; test_reference.py",
    "gebm convert converted --g_path g_150000.pth --d_path d_150000.pth": "the same",
    "gebm sample --dataset cifar10 --g_path converted --latent_sampler lmc --num_sampler_steps 1000": "the same",
    "gebm evaluate --from_untrusted downloads/run --dataset cifar10": "test_untrusted.py: the run here is of digits",
    "gebm score new.csv --from_untrusted downloads/run": "the same",
    "gebm sample --from_untrusted downloads/run": "the same",
    "torchrun --nproc_per_node=8 -m gebm train --dataset cifar10": "test_parallel.py, with two",
    "accelerate launch --multi_gpu --num_processes 8 -m gebm train --dataset cifar10": "the same",
    "torchrun --nproc_per_node=8 -m gebm sample --g_path runs/mine --n_samples 50000": "the same",
    "torchrun --nproc_per_node=8 -m gebm evaluate runs/mine --eval_fid": "the same",
    "gebm submit --dataset cifar10 --log_name mine --slurm_gpus 4 --slurm_hours 24 --slurm_partition gpu": (
        "test_submit_command.py"
    ),
    "gebm --completion fish > ~/.config/fish/completions/gebm.fish": "would write outside; test_completion.py",
}
HAVE_A_RUN = ("interchange.md", "runs.md", "scale.md")  # whose reader has one, `runs/mine`

IMAGES = "--total_gen_iter 2 --refine_iter 2 --n_iter_d 1 --n_iter_d_init 1 --b_size 8 --width 0.05"
TABLES = "--ml_epochs 1 --total_epochs 0 --refine_epochs 1 --b_size 50 --noise_factor 1 --partition_samples 200"
CHAINS = "--num_sampler_steps 4 --adapt_steps 4 --sample_b_size 50 --fid_samples 24 --fid_features pixels-8x8"
DEMO = f"{IMAGES} --n_samples 16 --fid_samples 64 --sample_b_size 64 --fid_features pixels"
SMALL = {"train": IMAGES, "sample": f"{CHAINS} --n_samples 16", "evaluate": CHAINS, "demo": DEMO}


class Block(NamedTuple):
    """A fenced block: its line in the page, its language, its text."""

    line: int
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    found, start = [], None
    lines = page.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        if start is None and (fence := re.match(r"(`{3,})\s*(\S*)", line)):
            start, marks, language = number, fence[1], fence[2]
        elif start is not None and line == marks:
            text = "\n".join(lines[start : number - 1])
            language = language or ("sh" if text.split(maxsplit=1)[:1] and text.split()[0] in PROGRAMS else "text")
            found.append(Block(start, language, text))
            start = None
    assert start is None, f"{page.name}:{start}: a block without an end"
    return [block for block in found if not block.language.startswith("{")]  # directives of the site


def commands(text: str) -> list[str]:
    """The commands of a shell block, one line each, without comments."""
    lines = (re.sub(r"(^|\s+)# .*$", "", line).strip() for line in text.replace("\\\n", " ").splitlines())
    return [" ".join(line.split()) for line in lines if line]


def words_of(command: str) -> list[str]:
    """Its words, without settings of the environment before it."""
    words = shlex.split(command)
    return words[next(i for i, word in enumerate(words) if not re.fullmatch(r"[A-Z_]+=.*", word)) :]


def arguments_of(command: str) -> tuple[str | None, list[str]] | None:
    """The subcommand of gebm and its arguments, of a line that calls gebm; None of another program."""
    words = words_of(command)
    if words[:2] == ["python", "main.py"]:
        return None, words[2:]
    return (words[1], words[2:]) if words[0] == "gebm" and words[1] in COMMANDS else None


def check_arguments(mode: str | None, arguments: list[str]) -> None:
    """Raise InputError for what the parser does not take."""
    if mode == "report" or {"--help", "-h"} & {*arguments}:
        return
    _, flags = _subjects(arguments, mode)
    parse(flags, mode)


def small(mode: str | None, arguments: list[str]) -> list[str]:
    """The same with small settings at the end, where they win."""
    named = " ".join(arguments)
    mode = mode or ("sample" if "sampling.yaml" in named else "train")
    of_table = re.search(r"redwine|whitewine|csv:|toy:|configs/uci", named)
    extra = TABLES if mode == "train" and of_table else SMALL.get(mode, "")
    if "smc" in named:  # which needs a population, and its steps
        extra = (
            extra.replace("_steps 4", "_steps 100")
            .replace("_samples 16", "_samples 100")
            .replace("_size 50", "_size 100")
        )
    return [*arguments, *extra.split()]


def run(mode: str | None, arguments: list[str]) -> tuple[int, str]:
    """Exit code and all that was printed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        if mode is None:
            from gebm.cli import run as entry_point

            return entry_point(arguments), out.getvalue()
        return main([mode, *arguments]), out.getvalue()


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    """A folder with the run of a small demo."""
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        code, printed = run("demo", DEMO.split())
    assert code == 0, printed
    return folder


@pytest.fixture
def world(tmp_path, monkeypatch) -> Path:
    """What a reader of the pages has around: a checkout, data and files of one's own."""
    for name in ("configs", "examples"):
        shutil.copytree(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)

    monkeypatch.setattr(cifar10, "RECORDS", 30)
    batches = tmp_path / "data" / "cifar-10-batches-bin"
    batches.mkdir(parents=True, exist_ok=True)
    for name in cifar10.BATCHES:
        (batches / f"{name}.bin").write_bytes(rng.integers(256, size=(30, 3073), dtype=np.uint8).tobytes())
    for folder in ("my_images", "pictures"):
        (tmp_path / folder).mkdir()
        for i in range(30):
            pixels = rng.integers(256, size=(32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{i}.png")
    np.savez(tmp_path / "samples.npz", samples=rng.integers(256, size=(30, 3, 32, 32), dtype=np.uint8))

    heads = ";".join(f'"column {i}"' for i in range(12))
    rows = [";".join(f"{value:.2f}" for value in row) for row in rng.normal(size=(200, 12))]
    (tmp_path / "data" / "winequality-red.csv").write_text("\n".join([heads, *rows]))
    for name, count in (("table.csv", 200), ("new.csv", 20)):
        np.savetxt(tmp_path / name, rng.normal(size=(count, 3)), delimiter=",", header="a,b,c", comments="")
    return tmp_path


def with_blocks() -> list[Path]:
    return [page for page in PAGES if any(block.language in ("sh", "python") for block in blocks(page))]


@pytest.mark.parametrize("page", with_blocks(), ids=lambda page: str(page.relative_to(ROOT)))
def test_page(page, world, request):
    if "runs/demo" in page.read_text(encoding="utf-8"):
        shutil.copytree(request.getfixturevalue("demo"), world, dirs_exist_ok=True)
    if page.name in ("security.md", "README.md"):
        shutil.copytree(request.getfixturevalue("demo") / "runs" / "demo", world / "downloads" / "run")
    if page.name in HAVE_A_RUN:
        shutil.copytree(request.getfixturevalue("demo") / "runs" / "demo", world / "runs" / "mine")
    torch.manual_seed(0)
    names: dict = {"__name__": "page"}
    for block in blocks(page):
        if block.language == "python":
            exec(compile("\n" * block.line + block.text, str(page), "exec"), names)
        for command in commands(block.text) if block.language == "sh" else ():
            try_command(f"{page.name}:{block.line}: {command}", command)


def try_command(where: str, command: str) -> None:
    if command in SKIPPED:
        return
    program, *rest = words_of(command)
    if called := arguments_of(command):
        mode, arguments = called
        for name in {"runs/a", "runs/b"} & {*arguments}:  # any two runs on the images that are there
            shutil.copytree(max(Path("runs").glob("cifar10-*/config.yaml")).parent, name)
        check_arguments(mode, arguments)
        code, printed = run(mode, arguments if mode == "report" else small(mode, arguments))
        assert code == 0, f"{where}\n{printed}"
    elif program == "gebm":
        code, printed = run(rest[0], rest[1:])
        assert code == 0, f"{where}\n{printed}"
    elif program == "python" and rest[0].startswith(("examples/", "benchmarks/")):
        assert (ROOT / rest[0]).is_file(), where
    elif program == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
        assert {*filter(lambda word: "=" not in word, rest)} <= {*targets}, where
    elif program == "pip":
        table = (
            (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2].partition("\n[")[0]
        )
        extras = {*re.findall(r"^(\w+) = ", table, re.M)}
        named = {extra for word in rest for part in re.findall(r"\[(.+)\]", word) for extra in part.split(",")}
        assert rest[0] == "install" and named <= extras, where
    else:
        pytest.fail(f"{where}: neither run nor in SKIPPED")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_a_line_of_text_are_parsed(page, monkeypatch):
    monkeypatch.chdir(ROOT)  # where configs/ is
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    text = text.replace("--config runs/demo/config.yaml", "--config configs/training.yaml")
    for span in re.findall(r"`((?:gebm|python main\.py) [^`]*--[^`]*)`", text):
        span = re.sub(r"\([^)]*\)", "there", span).replace("NAME", "digits")  # words to put one's own in
        names_a_flag = span.split()[-1].startswith("--") and "=" not in span  # as in `gebm train --refine_kale`
        if "..." not in span and not names_a_flag and (called := arguments_of(span)):
            check_arguments(*called)


def test_every_block_has_a_language_that_is_known():
    for page in PAGES:
        for block in blocks(page):
            assert block.language in ("sh", "python", *NOT_RUN), f"{page.name}:{block.line}"


def test_nothing_is_skipped_that_is_not_there():
    there = [
        command
        for page in PAGES
        for block in blocks(page)
        if block.language == "sh"
        for command in commands(block.text)
    ]
    assert SKIPPED.keys() <= {*there}


def test_small_settings_are_flags():
    for settings in (IMAGES, TABLES, CHAINS, DEMO):
        assert {word[2:] for word in settings.split() if word.startswith("--")} <= by_name(Config).keys()
