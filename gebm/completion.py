"""Shell completion of `gebm`: scripts made from the flags, for bash, zsh and fish."""

from collections.abc import Mapping
from dataclasses import Field, dataclass
from typing import Any

from gebm.config import MODES, READERS, sections
from gebm.errors import InputError
from gebm.flags import kinds
from gebm.text import hint, show

__all__ = ["SHELLS", "completion"]

PATHS = ("config", "a folder", "a file", "a zip", "a run", "a checkpoint")  # words for what a path stands for


@dataclass(frozen=True)
class _Flag:
    """One flag as shells see it: its names, its meaning, the words it takes, whether it takes a path, or nothing."""

    names: tuple[str, ...]
    meaning: str
    commands: tuple[str, ...] = MODES
    words: tuple[str, ...] = ()
    path: bool = False
    switch: bool = False


def completion(shell: str, commands: Mapping[str, str]) -> str:
    """The script that a shell sources.

    Args:
        shell: one of `SHELLS`.
        commands: name -> meaning of each command.

    Raises:
        InputError: another shell.
    """
    if shell not in SHELLS:
        raise InputError(f"--completion {show(shell)}: choose {', '.join(SHELLS)}{hint(shell, SHELLS)}")
    flags = [_Flag(("--config", "--configs"), "YAML file of lines flag: value", path=True)]
    flags += [_of(f) for group in sections().values() for f in group]
    return SHELLS[shell](flags, {**commands})


def _of(f: "Field[Any]") -> _Flag:
    words = [str(choice) for choice in f.metadata["choices"]]
    words += [form.partition(":")[0] + ":" for form in f.metadata["forms"] if form.endswith((":PATH", ":NAME"))]
    text = f.metadata["text"]
    if text.startswith("auto,"):
        words.append("auto")
    names = tuple(f"--{name}" for name in (f.name, f.metadata["alias"]) if name)
    return _Flag(
        names,
        f.metadata["help"],
        READERS[f.name],
        tuple(words),
        path=any(word in text for word in PATHS) or any(form.endswith(":PATH") for form in f.metadata["forms"]),
        switch=kinds(f) == (bool,),
    )


def _by_commands(flags: list[_Flag]) -> dict[str, list[_Flag]]:
    """The flags by the pattern of `case` that the commands which read them match."""
    found: dict[str, list[_Flag]] = {}
    for flag in flags:
        found.setdefault("|".join(flag.commands), []).append(flag)
    return found


def _bash(flags: list[_Flag], commands: dict[str, str]) -> str:
    cases = []
    for flag in flags:
        if not flag.switch:
            words = f' -W "{" ".join(flag.words)}"' if flag.words else ""
            files = " -f" if flag.path else ""
            reply = f"_gebm_reply{files}{words}; " if words or files else ""
            cases.append(f"        {'|'.join(flag.names)}) {reply}return ;;")
    groups = {of: " ".join(name for flag in group for name in flag.names) for of, group in _by_commands(flags).items()}
    return _BASH.format(
        commands=" ".join(commands),
        shells=" ".join(SHELLS),
        cases="\n".join(cases),
        flags="\n".join(f'    case $command in {of}) flags+=" {names}" ;; esac' for of, names in groups.items()),
    )


_BASH = """\
# bash completion of gebm; in ~/.bashrc: eval "$(gebm --completion bash)"
_gebm_reply() {{
    local line
    while IFS= read -r line; do COMPREPLY+=("$line"); done < <(compgen "$@" -- "$cur")
    if [[ ${{#COMPREPLY[@]}} == 1 && ${{COMPREPLY[0]}} == *: ]]; then compopt -o nospace 2>/dev/null; fi
}}
_gebm() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} flag=${{COMP_WORDS[COMP_CWORD-1]}} command=${{COMP_WORDS[1]}} flags=--help
    COMPREPLY=()
    # readline takes words apart at = and :, as in --flag=value and folder:path
    if [[ $cur == "=" || $cur == ":" ]]; then
        if [[ $cur == ":" ]]; then flag=":"; fi
        cur=""
    elif [[ $flag == "=" ]]; then
        flag=${{COMP_WORDS[COMP_CWORD-2]}}
    fi
    if [[ $COMP_CWORD == 1 ]]; then
        _gebm_reply -W "{commands} --help --version --completion"
        return
    fi
    case $flag in
        --completion) _gebm_reply -W "{shells}"; return ;;
        :) _gebm_reply -f; return ;;
{cases}
    esac
    if [[ $cur != -* ]]; then
        case $command in
            data) if [[ $COMP_CWORD == 2 ]]; then _gebm_reply -W prepare; return; fi ;;
            evaluate|score|report) _gebm_reply -f; return ;;
        esac
    fi
{flags}
    _gebm_reply -W "$flags"
}}
complete -o filenames -F _gebm gebm
"""


def _zsh(flags: list[_Flag], commands: dict[str, str]) -> str:
    specs: dict[str, list[str]] = {}
    for of, flag in ((of, flag) for of, group in _by_commands(flags).items() for flag in group):
        action = " "
        if flag.words or flag.path:
            words = " ".join(word.removesuffix(":") for word in flag.words)
            action = f" _gebm_value {'files' if flag.path else 'words'} {words}".rstrip()  # a blank first: called as is
        value = "" if flag.switch else f":value:{action}"
        equals = "" if flag.switch else "="
        quoted = [_zsh_quoted(f"{name}{equals}[{_zsh_escaped(flag.meaning)}]{value}") for name in flag.names]
        specs.setdefault(of, []).extend(quoted)
    return _ZSH.format(
        commands="\n".join(f"        {_zsh_quoted(f'{name}:{meaning}')}" for name, meaning in commands.items()),
        shells=" ".join(SHELLS),
        flags="\n".join(
            f"    case $words[1] in {of}) flags+=(\n{chr(10).join(f'        {spec}' for spec in group)}\n    ) ;; esac"
            for of, group in specs.items()
        ),
    )


def _zsh_escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("[", "\\[").replace("]", "\\]")


def _zsh_quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


_ZSH = """\
#compdef gebm
# zsh completion of gebm; in ~/.zshrc, after compinit: eval "$(gebm --completion zsh)"
_gebm_value() {{
    local kind=$1 done=1
    shift
    if [[ $kind == files ]] && compset -P 1 '*:'; then _files; return; fi
    (( $# )) && _wanted values expl value compadd -- "$@" && done=0
    [[ $kind == files ]] && _files && done=0
    return done
}}
_gebm() {{
    local -a commands flags
    commands=(
{commands}
    )
    if (( CURRENT == 2 )); then
        _describe command commands
        return
    fi
    shift words
    (( CURRENT-- ))
{flags}
    case $words[1] in
        --completion) _values shell {shells}; return ;;
        data) flags+=('1:what:(prepare)') ;;
        evaluate|score|report) flags+=('*:file:_files') ;;
    esac
    _arguments $flags
}}
if [[ $funcstack[1] == _gebm ]]; then _gebm "$@"; else compdef _gebm gebm; fi
"""


def _fish(flags: list[_Flag], commands: dict[str, str]) -> str:
    def quoted(text: str) -> str:
        return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

    lines = ["# fish completion of gebm: gebm --completion fish > ~/.config/fish/completions/gebm.fish"]
    lines.append("complete -c gebm -f")
    for name, meaning in commands.items():
        lines.append(f"complete -c gebm -n __fish_use_subcommand -a {name} -d {quoted(meaning)}")
    lines.append("complete -c gebm -n '__fish_seen_subcommand_from data' -a prepare")
    lines.append("complete -c gebm -n '__fish_seen_subcommand_from evaluate score report' -F")
    for flag in flags:
        value = "" if flag.switch else " -r -F" if flag.path else " -x"
        words = f" -a {quoted(' '.join(flag.words))}" if flag.words else ""
        of = f" -n '__fish_seen_subcommand_from {' '.join(flag.commands)}'"
        lines += [f"complete -c gebm{of} -l {name[2:]}{value}{words} -d {quoted(flag.meaning)}" for name in flag.names]
    return "\n".join(lines) + "\n"


SHELLS = {"bash": _bash, "zsh": _zsh, "fish": _fish}
