"""The command line: `gebm train|sample|evaluate|demo`, and `main.py`, which takes the command from `--mode`.

Nothing here or in what it imports at the top loads torch: help and errors of the arguments answer at once.
"""

import importlib
import signal
import sys
from collections.abc import Sequence

from gebm.errors import InputError
from gebm.flags import hint, show
from gebm.parsing import parse

__all__ = ["main"]

COMMANDS = {
    "train": "train a base and an energy on a dataset",
    "sample": "sample from a trained pair by MCMC in its latent space",
    "evaluate": "evaluate a trained run, or the samples of one, on a dataset",
    "demo": "train, sample and evaluate on the bundled digits, in a few minutes",
}

HELP = f"""usage: gebm COMMAND [--config FILE] [--FLAG VALUE ...]

Generalized energy-based models: an energy on top of a generator, sampled in latent space.

commands:
{chr(10).join(f"  {name:10}{meaning}" for name, meaning in COMMANDS.items())}

first steps:
  gebm demo
  gebm train --dataset digits --total_gen_iter 500
  gebm sample --dataset digits

`gebm COMMAND --help` lists every flag; docs/flags.md is the same as a table."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `gebm COMMAND ...`; returns the exit code: 0, 2 for bad input, 1 for a run that failed, 128 + signal."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0
    if argv[0] == "--version":
        from importlib.metadata import version

        print(f"gebm {version('gebm')}")
        return 0
    command, *rest = argv
    if command not in COMMANDS:
        return _fail(f"unknown command {show(command)}{hint(command, COMMANDS)}; commands: {', '.join(COMMANDS)}", 2)
    return run(rest, command)


def run(argv: Sequence[str], mode: str | None = None) -> int:
    """Run the arguments of one command; without `mode` the configuration names it (main.py)."""
    if "" not in sys.path:
        sys.path.append("")  # the user's own networks and data, as under `python -m`; last, so that it hides nothing
    try:
        subject, argv = _subject(argv, mode)
        config, given = parse(argv, mode)
        command = importlib.import_module(f"gebm.commands.{config.mode}")
        arguments = (config, given, subject) if config.mode == "evaluate" else (config, given)
        command.main(*arguments)
    except InputError as error:
        return _fail(str(error), 2)
    except FloatingPointError as error:
        return _fail(str(error), 1)
    except OSError as error:  # a full disk, a folder that vanished
        return _fail(f"{error.strerror or error}: {error.filename or 'no file named'}", 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 128 + signal.SIGINT)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def _subject(argv: Sequence[str], mode: str | None) -> tuple[str, list[str]]:
    """The run or samples that `gebm evaluate SUBJECT` names before its flags."""
    if mode == "evaluate" and argv and not argv[0].startswith(("-", "—")):
        return argv[0], list(argv[1:])
    return "", list(argv)


def _fail(message: str, code: int) -> int:
    print(f"gebm: error: {' '.join(message.split())}", file=sys.stderr)
    return code
