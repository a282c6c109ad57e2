"""From the arguments of a command to a checked `Config`: command line over YAML over defaults."""

import re
from argparse import SUPPRESS, ArgumentError, ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import Field
from typing import Any, NamedTuple

from gebm.config import COMMANDS, READERS, SUBJECTS, Config, sections
from gebm.errors import InputError
from gebm.flags import allowed, by_name, check_mapping, kinds, read_yaml
from gebm.text import hint, show

__all__ = ["ReportWords", "help_text", "parse", "parse_report"]

CONFIG = ("--config", "--configs")
PRECEDENCE = """The command line wins over the YAML file, which wins over the defaults, shown
in [brackets]."""
REPORT = """usage: gebm report [--from_untrusted] RUN [package.module:name ...] [--dataset NAME]

Writes RUN/report.html, one page about a run of gebm train, sample or demo. Networks that its config.yaml names by code
are imported, and a line says which; other code, such as a data set of its own, only if it is named here too. Of
somebody else's run (--from_untrusted) no code is imported that is not named here, and nothing outside its folder is
looked at or fetched, but the digits that come with scikit-learn: its data set is read only if it is named here, as
cifar10 or folder:pictures."""
METAVARS = {bool: "true|false", int: "N", float: "X", str: "TEXT"}


def parse(argv: Sequence[str], mode: str | None = None) -> tuple[Config, frozenset[str]]:
    """The configuration that a command line asks for, and the names of the flags given on it or in its YAML files.

    Flags that the command does not read are refused, those in YAML, which other commands may share, are left out, as
    are those of main.py, which the documents give as one list. `--help` prints the flags of the command and exits.

    Args:
        argv: the arguments, without the program's name and the subcommand.
        mode: the subcommand, which wins over the `mode` of a YAML file.

    Raises:
        InputError: a flag, a value or a file is wrong.
    """
    words = _tokens(argv, mode)
    given: dict[str, Any] = {}
    for path in words.pop("config", ()):
        given |= check_mapping(Config, read_yaml(path), f"{path}: ")
    command = check_mapping(Config, words, "--")
    if mode and command.get("mode", mode) != mode:
        raise InputError(f"--mode {command['mode']} contradicts the command {mode}: leave one of the two out")
    wanted = str(mode or command.get("mode") or given.get("mode", Config.mode))
    given |= command | ({"mode": mode} if mode else {})
    refused = [*(command if mode else ()), *(["from_untrusted"] if given.get("from_untrusted") else [])]
    for name in refused:
        if wanted not in READERS[name]:
            raise InputError(f"--{name}: is of {', '.join(READERS[name])}; gebm {wanted} has no use for it")
    given = {name: value for name, value in given.items() if wanted in READERS[name]}
    return Config(**given), frozenset(given)


class ReportWords(NamedTuple):
    """The words of `gebm report`: the run, what it may read or import, and whether it is somebody else's."""

    run: str
    allow: list[str]
    untrusted: bool


def parse_report(argv: Sequence[str]) -> ReportWords:
    """What a line of `gebm report` asks for; `--help` prints how to write one and exits.

    Raises:
        InputError: it names no run, or several, or a flag that `gebm report` has not.
    """
    if {"-h", "--help"} & set(argv):
        print(REPORT)
        raise SystemExit(0)
    words: list[str] = []
    allow: list[str] = []
    untrusted, rest = False, iter(argv)
    for word in rest:
        name, equals, value = re.sub("^[—–]", "--", word).partition("=")
        if name == "--dataset":
            allow.append(value if equals else next(rest, ""))
        elif name == "--from_untrusted":
            untrusted = True
            words += [value] if equals else []
        else:
            words.append(word)
    run, allow = words[:1], words[1:] + allow
    named = {*by_name(Config)["dataset"].metadata["choices"], *by_name(Config)["fid_features"].metadata["choices"]}
    if not run or run[0].startswith("-") or not all(":" in word or word in named for word in allow):
        given = f"not {show(' '.join(argv))}" if argv else "as in gebm report runs/demo"
        raise InputError(f"gebm report takes the folder of one run, then package.module:name or a data set, {given}")
    return ReportWords(run[0], allow, untrusted)


def help_text(mode: str | None = None) -> str:
    """What `--help` prints: each flag of a command (None: of all) with its meaning, what it takes and its default."""
    return _parser(mode).format_help()


def _tokens(argv: Sequence[str], mode: str | None) -> dict[str, Any]:
    """The arguments as a mapping from flags to texts, only what is given."""
    argv = [re.sub("^[—–]", "--", word) for word in argv]  # the documents print `—device`
    known = {*CONFIG, "--help", *(f"--{name}" for name in by_name(Config))}
    for word in argv:
        name = word.partition("=")[0]
        if name.startswith("--") and name not in known:
            raise InputError(f"unknown flag {show(name)}{hint(name, known)}")
    try:
        words, unknown = _parser(mode).parse_known_args(argv)
    except ArgumentError as error:
        name = str(error.argument_name).partition("/")[0]
        raise InputError(f"{name} needs one value, as {name}=VALUE") from None
    if unknown:
        raise InputError(f"{show(unknown[0])} is not a flag; flags are given as --name value")
    return vars(words)


def _parser(mode: str | None) -> ArgumentParser:
    """Splits arguments into flags and texts and knows the help; the texts are checked by `check_mapping`."""
    program, meaning = "python main.py", ""
    if mode:
        words, what = SUBJECTS.get(mode, ("", ""))
        program = f"gebm {mode} {words}".rstrip()
        meaning = f"{COMMANDS[mode][0].upper()}{COMMANDS[mode][1:]}.\n" + (f"{what}.\n\n" if what else "\n")
    parser = ArgumentParser(
        usage=f"{program} [--config FILE] [--FLAG VALUE ...]",
        description=meaning + PRECEDENCE,
        formatter_class=RawDescriptionHelpFormatter,
        argument_default=SUPPRESS,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument(*CONFIG, action="append", metavar="FILE", help="YAML file of lines `flag: value`")
    for title, flags in sections().items():
        group = parser.add_argument_group(title)
        for f in flags:
            names = [f"--{name}" for name in (f.name, f.metadata["alias"]) if name]
            switch: dict[str, Any] = {"nargs": "?", "const": "true"} if f.type is bool else {}
            metavar = METAVARS[kinds(f)[0]]
            meaning = _help(f).replace("%", "%%") if mode is None or _shown(f, mode) else SUPPRESS
            group.add_argument(*names, type=str, metavar=metavar, help=meaning, **switch)
    return parser


def _shown(f: Field[Any], command: str) -> bool:
    """Whether the help of a command has a flag: those that it reads but `--mode`, which is the command itself."""
    return command in READERS[f.name] and f.name != "mode"


def _help(f: Field[Any]) -> str:
    """The help of one flag."""
    values = "" if f.type is bool or f.metadata["text"] == allowed(f) == "text" else f" ({allowed(f)})"
    return f"{f.metadata['help']}{values} [{show(f.default)}]"
