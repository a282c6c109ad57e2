"""Completion scripts, sourced in the shells they are for."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gebm.cli import COMMANDS, main
from gebm.completion import SHELLS, completion
from gebm.config import READERS, Config
from gebm.flags import by_name

# A line as readline takes it apart, at blanks, = and :
ASK = r"""
set -u
source "$1"
shift
COMP_WORDS=("$@") COMP_CWORD=$(( $# - 1 )) COMPREPLY=()
_gebm gebm "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\n' "${COMPREPLY[@]-}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """The file of a shell's script."""

    def write(shell: str) -> Path:
        path = tmp_path_factory.mktemp("completion") / f"gebm.{shell}"
        path.write_text(completion(shell, COMMANDS))
        return path

    return write


@pytest.fixture
def bash(script, tmp_path):
    """What bash offers for the last of some words, in a folder of a few files."""
    for name in ("config.yaml", "with blank.csv"):
        (tmp_path / name).touch()

    def ask(*words: str) -> set[str]:
        command = ["bash", "--norc", "-c", ASK, "bash", script("bash"), "gebm", *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert not done.stderr
        return {*done.stdout.splitlines()} - {""}

    return ask


def test_bash_commands(bash):
    assert bash("") == {*COMMANDS, "--help", "--version", "--completion"}
    assert bash("s") == {"sample", "score", "submit"}
    assert bash("data", "") == {"prepare"}
    assert bash("--completion", "") == {*SHELLS}


def test_bash_flags(bash):
    for command in ("train", "export"):
        names = {f"--{name}" for name, f in by_name(Config).items() if command in READERS[f.name]}
        assert bash(command, "--") == names | {"--config", "--configs", "--help"}
    assert bash("sample", "--resu") == set()
    assert bash("train", "--bn", "--lmc_k") == {"--lmc_kappa"}  # a switch takes no value


@pytest.mark.parametrize("name", ["latent_sampler", "criterion", "g_model", "optimizer", "dtype"])
def test_bash_choices(bash, name):
    choices = {str(choice) for choice in by_name(Config)[name].metadata["choices"]}
    assert bash("train", f"--{name}", "") == choices
    assert bash("train", f"--{name}", "=") == choices
    first = sorted(choices)[0]
    assert bash("train", f"--{name}", "=", first) == {choice for choice in choices if choice.startswith(first)}


def test_bash_paths(bash):
    files = {"config.yaml", "with blank.csv"}
    assert bash("train", "--config", "") == bash("score", "") == bash("train", "--g_path", "") == files
    assert bash("train", "--dataset", "csv", ":", "with") == {"with blank.csv"}
    assert bash("train", "--dataset", "di") == {"digits"}
    assert bash("train", "--width", "") == set()  # any number


@pytest.mark.skipif(not shutil.which("fish"), reason="fish is not installed")
@pytest.mark.parametrize(
    "line, offered",
    [
        ("gebm s", {"sample", "score", "submit"}),
        ("gebm train --lmc_k", {"--lmc_kappa"}),
        ("gebm export --for", {"--format"}),
        ("gebm train --for", set()),
        ("gebm train --latent_sampler m", {"mala", "mh"}),
    ],
)
def test_fish(script, tmp_path, line, offered):
    command = ["fish", "--no-config", "-c", f"source {script('fish')}; complete -C '{line}'"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert {row.partition("\t")[0] for row in done.stdout.splitlines()} == offered


# Completion in zsh needs its line editor, so a zsh of its own is typed into.
TYPE = r"""
zmodload zsh/zpty
zpty z zsh -f -i
zpty -w z "PROMPT='> '; autoload -Uz compinit; compinit -u -D; source $1; stty -echo"
zpty -w z 'echo RE""ADY'
while [[ $seen != *READY* ]]; do zpty -r z out; seen+=$out; done
shift
for line in "$@"; do
    zpty -w -n z "$line"$'\t'
    zpty -w -n z $'\x01: \x05\n'  # made a comment, and ended
    zpty -w z 'echo DO""NE'
    seen=
    while [[ $seen != *DONE* ]]; do zpty -r z out; seen+=$out; done
    print -r -- "${(V)seen}"
done
"""


@pytest.mark.skipif(not shutil.which("zsh"), reason="zsh is not installed")
def test_zsh(script, tmp_path):
    lines = {
        "gebm sam": "gebm sample",
        "gebm train --lmc_k": "gebm train --lmc_kappa",
        "gebm export --form": "gebm export --format",
        "gebm train --latent_sampler lan": "gebm train --latent_sampler langevin",
        "gebm train --latent_sampler=lan": "gebm train --latent_sampler=langevin",
        "gebm train --dataset folder:/et": "gebm train --dataset folder:/etc",
        "gebm evaluate /et": "gebm evaluate /etc",
        "gebm data pr": "gebm data prepare",
    }
    command = ["zsh", "-f", "-c", TYPE, "zsh", script("zsh"), *lines]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    for typed, (line, completed) in zip(done.stdout.split("DONE"), lines.items()):
        assert completed in typed, line


def test_command_line(capsys):
    for arguments in (["--completion", "bash"], ["--completion=bash"]):
        assert main(arguments) == 0
        assert capsys.readouterr().out == completion("bash", COMMANDS)
    assert main(["--completion", "bsh"]) == 2
    assert "--completion bsh: choose bash, zsh, fish; did you mean bash?" in capsys.readouterr().err
    assert main(["--completion"]) == 2


def test_answers_without_torch():
    code = "import sys\nfrom gebm.cli import main\nmain(['--completion', 'zsh'])\nsys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
