"""HTML by small functions, which escape all text but what they made themselves: no name of a user's becomes markup."""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from gebm.bounded import read_bytes
from gebm.pictures import grid

__all__ = ["Html", "columns", "data_uri", "element", "figure", "image", "note", "table", "tiled"]

MEDIA = {".png": "image/png", ".gif": "image/gif"}
MAX_PICTURE = 64 << 20  # bytes of a picture that a page holds
VOID = ("img", "meta")


class Html(str):
    """Text that is markup already."""


def _markup(child: object) -> str:
    return child if isinstance(child, Html) else html.escape(str(child))


def element(tag: str, *children: object, **attributes: object) -> Html:
    """`<tag name="value">children</tag>`; an attribute `class_` is written `class`, and `aria_label` `aria-label`."""
    named = {name.rstrip("_").replace("_", "-"): html.escape(str(value)) for name, value in attributes.items()}
    written = "".join(f' {name}="{value}"' for name, value in named.items())
    start = f"<{tag}{written}>"
    return Html(start if tag in VOID else f"{start}{''.join(map(_markup, children))}</{tag}>")


def columns(blocks: Iterable[Html], kind: str = "columns") -> Html:
    """Blocks side by side where there is room."""
    return element("div", *blocks, class_=kind)


def note(text: object) -> Html:
    """A line in small print, as on why something is not there."""
    return element("p", text, class_="note")


def table(rows: Sequence[Sequence[object]], header: Sequence[object] = ()) -> Html:
    """A table whose first column names its rows; a wide one scrolls in a box of its own."""
    head = [element("thead", element("tr", *(element("th", cell, scope="col") for cell in header)))] if header else []
    body = [
        element("tr", element("th", first, scope="row"), *(element("td", cell) for cell in rest))
        for first, *rest in rows
    ]
    return element("div", element("table", *head, element("tbody", *body)), class_="scroll", tabindex=0)


def data_uri(content: Path | bytes) -> str:
    """A picture, a file or the bytes of a PNG, as an address that holds it."""
    kind = "image/png" if isinstance(content, bytes) else MEDIA[content.suffix]
    raw = content if isinstance(content, bytes) else read_bytes(content, MAX_PICTURE)
    return f"data:{kind};base64,{base64.b64encode(raw).decode()}"


def image(content: Path | bytes, alt: str) -> Html:
    """The picture itself; `alt` says what it shows."""
    return element("img", src=data_uri(content), alt=alt)


def tiled(images: np.ndarray, alt: str, columns: int | None = None) -> Html:
    """A grid of uint8 images (N, C, H, W), each pixel once: the page enlarges it."""
    buffer = io.BytesIO()
    grid(images, columns, side=1).save(buffer, format="PNG")
    return image(buffer.getvalue(), alt)


def figure(content: Html, caption: object) -> Html:
    """A chart or picture over its caption."""
    return element("figure", content, element("figcaption", caption))
