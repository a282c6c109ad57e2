"""What a flag is: a dataclass field that carries its own meaning and limits, and the one check that applies them."""

import math
import operator
import re
from collections.abc import Mapping
from dataclasses import Field, field, fields
from pathlib import Path
from typing import Any, get_args

import yaml

from gebm.bounded import MAX_CONFIG, read_bytes
from gebm.errors import InputError
from gebm.text import hint, show

__all__ = ["DOTTED", "allowed", "by_name", "check", "check_mapping", "flag", "kinds", "read_yaml"]

DOTTED = "package.module:factory"
FORMS = {  # what a text may look like besides the names of its `choices`
    DOTTED: r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*",
    "folder:PATH": r"folder:.+",
    "npz:PATH": r"npz:.+",
    "hub:NAME": r"hub:.+",
    "csv:PATH": r"csv:.+",
    "toy:NAME": r"toy:\w+",
    "whole numbers with commas between": r"\d+(\s*,\s*\d+)*",
}
BOUNDS = {"ge": (operator.ge, ">="), "gt": (operator.gt, ">"), "le": (operator.le, "<="), "lt": (operator.lt, "<")}
TRUTH = {"true": True, "yes": True, "false": False, "no": False}


def flag(
    default: Any,
    help: str,
    *,
    choices: tuple[object, ...] = (),
    forms: tuple[str, ...] = (),
    text: str = "text",
    alias: str | None = None,
    of: tuple[str, ...] = (),
    **bounds: float,
) -> Any:
    """A dataclass field with a meaning and limits.

    Args:
        default: its value when nothing is given; its type is the field's annotation.
        help: its meaning, in a phrase.
        choices: the values it may take (names in any case).
        forms: keys of `FORMS`, accepted besides `choices`.
        text: what a free text stands for, as "a folder".
        alias: a second name.
        of: the commands that read it; empty: those of its section.
        bounds: limits of a number, any of `ge`, `gt`, `le`, `lt`.
    """
    words = {"help": help, "text": text, "alias": alias}
    return field(default=default, metadata={**words, "choices": choices, "forms": forms, "of": of, "bounds": bounds})


def kinds(f: Field[Any]) -> tuple[type, ...]:
    """The types a field admits: (int,), or (float, str) for `float | str`."""
    return get_args(f.type) or (f.type,)


def allowed(f: Field[Any]) -> str:
    """The values a field may take, in words."""
    if kinds(f) == (bool,):
        return "true, false"
    parts = [str(choice) for choice in f.metadata["choices"]] + list(f.metadata["forms"])
    if not f.metadata["choices"] or float in kinds(f):
        number = {int: "a whole number", float: "a number"}.get(kinds(f)[0])
        limits = " and ".join(f"{BOUNDS[name][1]} {limit}" for name, limit in f.metadata["bounds"].items())
        if number:
            parts.append(f"{number} {limits}".strip())
    return ", ".join(parts) or f.metadata["text"]


def check(f: Field[Any], value: Any, where: str = "") -> Any:
    """`value`, given as itself or as the text of a command line, in the field's type; `where` says where it stands.

    Raises:
        InputError: the value has another type, is not a choice, or is out of bounds.
    """
    if isinstance(value, bool) and {"yes", "no"} <= set(f.metadata["choices"]):  # which YAML takes for truth values
        value = "yes" if value else "no"
    for kind in kinds(f):
        try:
            converted = convert(kind, value)
        except (ValueError, OverflowError):
            continue
        choices = {str(choice).lower(): choice for choice in f.metadata["choices"]}
        if str(converted).lower() in choices:
            return choices[str(converted).lower()]
        if kind is str:
            forms = f.metadata["forms"]
            if any(re.fullmatch(FORMS[form], converted) for form in forms) or not (choices or forms):
                return converted
        elif not choices or kind is float:
            if all(BOUNDS[name][0](converted, limit) for name, limit in f.metadata["bounds"].items()):
                return converted
    if isinstance(value, str) and str in kinds(f) and not value.isprintable():
        advice = "; of printable characters, in the encoding of this locale"
    elif isinstance(value, str) and str in kinds(f):
        advice = hint(value, (str(choice) for choice in f.metadata["choices"]))
    else:
        advice = " (put text in quotes)" if str in kinds(f) else ""
    raise InputError(f"{where}{f.name} {show(value)} is not allowed; allowed: {allowed(f)}{advice}")


def convert(kind: type, value: Any) -> Any:
    """`value` as a `kind`; raises `ValueError` where that would guess (2.5 as a whole number, 7 as a text)."""
    if kind is bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in TRUTH:
            return TRUTH[value.lower()]
    elif kind is str:
        if isinstance(value, str) and value.isprintable():
            return value
    elif isinstance(value, (str, int, kind)) and not isinstance(value, bool):
        number = kind(value)
        if math.isfinite(number):
            return number
    raise ValueError


def by_name(cls: type) -> dict[str, Field[Any]]:
    """The fields of a dataclass of flags by all their names."""
    return {name: f for f in fields(cls) for name in (f.name, f.metadata["alias"]) if name}


def check_mapping(cls: type, given: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """The keys and values of a mapping as checked fields of a dataclass; a null value stands for the default.

    Raises:
        InputError: a key is unknown or names one field twice, or a value is not allowed.
    """
    names = by_name(cls)
    values: dict[str, Any] = {}
    for key, value in given.items():
        if key not in names:
            raise InputError(f"{where}unknown key {show(key)}{hint(str(key), names)}")
        if names[key].name in values:
            raise InputError(f"{where}{key} is given twice: it is another name of {names[key].name}")
        if value is not None:
            values[names[key].name] = check(names[key], value, where)
    return values


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice, and merge keys: each level of these can double the one below."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise yaml.MarkedYAMLError(problem="no merge keys (<<) here", problem_mark=key.start_mark)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{show(key.value)} is given twice", problem_mark=key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path) -> dict[Any, Any]:
    """The flat mapping of a YAML file, safe-loaded; an empty file is an empty mapping.

    Raises:
        InputError: the file cannot be read, is not YAML, or is not a mapping.
    """
    try:
        content = yaml.load(read_bytes(path, MAX_CONFIG), Loader=_Loader)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot read the configuration {path!s:.200}: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"{path}{line}: not valid YAML: {error.problem}") from None
    except Exception as error:  # odd bytes, impossible dates, nesting without end: PyYAML lets anything through
        raise InputError(f"{path}: not valid YAML: {show(error)}") from None
    if not isinstance(content, dict | None):
        raise InputError(f"{path}: holds {show(content)} where lines of the form `flag: value` are expected")
    return content or {}
