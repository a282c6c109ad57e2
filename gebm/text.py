"""Values and names within messages, and where these go."""

import io
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from difflib import get_close_matches
from typing import Any

__all__ = ["hint", "open_streams", "print_nowhere", "printable", "show"]


def show(value: Any) -> str:
    """A value within an error message: on one line, short, quoted where the eye would miss it."""
    if isinstance(value, (list, dict, set, tuple)):  # never printed: aliases of YAML can make it huge
        return f"(a {type(value).__name__})"
    try:
        text = str(value).lower() if isinstance(value, bool) else str(value)
    except ValueError:  # of thousands of digits
        text = f"(a {type(value).__name__} of many digits)"
    text = text if text.isprintable() and text == text.strip() != "" else repr(text)
    return text if len(text) <= 60 else text[:57] + "..."


def printable(text: str) -> str:
    """A text for a terminal: what would move its cursor or colour it is spelt out, line by line."""
    return "\n".join("".join(c if c.isprintable() else ascii(c)[1:-1] for c in line) for line in text.split("\n"))


def hint(name: str, known: Iterable[str]) -> str:
    """The end of an error message that names the nearest of the known names, empty when none is near."""
    spelt = {other.lower(): other for other in known}
    near = get_close_matches(name.lower(), spelt, n=1)
    return f"; did you mean {spelt[near[0]]}?" if near else ""


def print_nowhere(error: OSError | None = None) -> None:
    """From here on what is printed goes nowhere, as nobody reads it any more, or as it cannot be written."""
    if error is not None and not isinstance(error, BrokenPipeError):
        with suppress(OSError):
            print(f"gebm: nothing more is printed: {error.strerror}", file=sys.stderr)
    _open_nowhere(sys.stdout.fileno())


def open_streams() -> None:
    """Give a process that was started without stdout or stderr one that goes nowhere, and let both print any text.

    Libraries write to both, and a file that is opened later must not get the number, and so the words, of either.
    """
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            try:
                os.fstat(number)
            except OSError:
                _open_nowhere(number)
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (for good)
        elif isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")


def _open_nowhere(number: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    if nowhere != number:
        os.dup2(nowhere, number)
        os.close(nowhere)
