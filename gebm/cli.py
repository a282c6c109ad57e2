"""The command line: `gebm COMMAND`, and `main.py`, which takes the command from `--mode`.

Nothing here or in what it imports at the top loads torch: help and errors of the arguments answer at once.
"""

import gc
import importlib
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from itertools import takewhile
from types import ModuleType

from gebm import fast
from gebm.config import COMMANDS, SUBJECTS, Config
from gebm.errors import InputError, LostProcess
from gebm.parsing import parse, parse_report
from gebm.text import hint, open_streams, print_nowhere, printable, show
from gebm.untrusted import data_path_beside, without_its_modules

__all__ = ["main"]

NO_MEMORY = re.compile("(not enough|out of|can't allocate) memory")  # of torch's RuntimeError

SEVERAL = ("train", "sample", "evaluate")  # commands that run on several processes

HELP = f"""usage: gebm COMMAND [--config FILE] [--FLAG VALUE ...]

Generalized energy-based models: an energy on top of a generator, sampled in latent space.

commands:
{chr(10).join(f"  {name:10}{meaning}" for name, meaning in COMMANDS.items())}

first steps:
  gebm demo
  gebm train --dataset digits --width 0.25 --Z_dim 10 --total_gen_iter 500
  gebm sample --dataset digits

`gebm COMMAND --help` lists the flags of a command; docs/flags.md has them all in tables.
`gebm --completion bash` (zsh, fish) prints completion for your shell."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `gebm COMMAND ...`; returns the exit code: 0, 2 for bad input, 1 for a run that failed, 128 + signal."""
    open_streams()
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        _say(HELP)
        return 0
    if argv[0] == "--version":
        from importlib.metadata import version

        _say(f"gebm {version('gebm')}")
        return 0
    command, *rest = argv
    if command.partition("=")[0] == "--completion":
        from gebm.completion import completion

        try:
            _say(completion(command.partition("=")[2] or " ".join(rest), COMMANDS).rstrip("\n"))
        except InputError as error:
            return _fail(str(error), 2)
        return 0
    if command not in COMMANDS:
        return _fail(f"unknown command {show(command)}{hint(command, COMMANDS)}; commands: {', '.join(COMMANDS)}", 2)
    return run(rest, command)


def _imported(name: str) -> ModuleType:
    """A module; what is imported stays, and looking for garbage among it was a fifth of the time to start."""
    if name in sys.modules:
        return sys.modules[name]
    gc.disable()
    try:
        return importlib.import_module(name)
    finally:
        gc.freeze()
        gc.enable()


def run(argv: Sequence[str], mode: str | None = None) -> int:
    """Run the arguments of one command; without `mode` the configuration names it (main.py)."""
    open_streams()
    try:
        if mode == "report":  # the run's own configuration says all
            words = parse_report(argv)
            with without_its_modules(words.run if words.untrusted else "", words.allow):
                importlib.import_module("gebm.commands.report").main(words)
            return 0
        subjects, argv = _subjects(argv, mode)
        config, given = parse(argv, mode)
        with without_its_modules(config.from_untrusted, (str(getattr(config, flag)) for flag in given)):
            _run(config, given, subjects)
    except InputError as error:
        return _fail(str(error), 2)
    except (FloatingPointError, LostProcess) as error:
        return _fail(str(error), 1)
    except OSError as error:  # a full disk, a folder that vanished
        return _fail(f"{error.strerror or error}: {error.filename or 'no file named'}", 1)
    except UnicodeEncodeError as error:  # of the name of a file
        name, encoding = show(error.object), sys.getfilesystemencoding()
        return _fail(f"{name}: no name of a file in the encoding of this locale, {encoding}; set LC_ALL=C.UTF-8", 2)
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(error, MemoryError) or NO_MEMORY.search(str(error))):
            raise
        return _fail("not enough memory; see --b_size, --sample_b_size", 1)
    except KeyboardInterrupt as stop:
        number = signal.Signals(stop.args[0] if stop.args else signal.SIGINT)
        return _fail(f"interrupted by {number.name}", 128 + number)
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        _say()
    return 0


def _run(config: Config, given: frozenset[str], subjects: list[str]) -> None:
    """Run a command on its checked configuration."""
    if config.from_untrusted and "data_path" not in given:
        config = replace(config, data_path=data_path_beside(config.from_untrusted, config.data_path))
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1 and {"RANK", "LOCAL_RANK"} <= os.environ.keys()
    if several and config.mode not in SEVERAL:
        raise InputError(f"gebm {config.mode}: is one process; start it without torchrun or accelerate launch")
    command = _imported(f"gebm.commands.{config.mode}")
    if config.fast != "off":
        _imported("gebm.memory").keep_freed()
    arguments = (config, given, subjects) if config.mode in SUBJECTS else (config, given)
    guard = importlib.import_module("gebm.parallel").together("start it again") if several else nullcontext()
    with fast.plain(config.fast == "off"), guard:
        command.main(*arguments)


def _say(*lines: str) -> None:
    """Print, and let go what was printed; that nobody reads it, as under `| head`, or that it cannot be written, is no
    error."""
    try:
        for line in lines:
            print(line)
        if sys.stdout is not None:  # closed by who started this
            sys.stdout.flush()
    except OSError as error:
        print_nowhere(error)


def _subjects(argv: Sequence[str], mode: str | None) -> tuple[list[str], list[str]]:
    """What `gebm evaluate RUN ...` or `gebm data prepare` names before its flags, and the flags."""
    subjects = list(takewhile(lambda word: not word.startswith(("-", "—")), argv)) if mode in SUBJECTS else []
    return subjects, list(argv[len(subjects) :])


def _fail(message: str, code: int) -> int:
    if os.environ.get("RANK", "0") != "0":
        # What all processes find the first one says, and their launcher then ends them.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(2)
    with suppress(OSError):
        print(f"gebm: error: {printable(' '.join(message.split()))}", file=sys.stderr)
    if os.environ.get("WORLD_SIZE", "1") != "1" and "accelerate" in sys.modules:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # threads of gloo that wait for the others would abort the interpreter's end
    return code
