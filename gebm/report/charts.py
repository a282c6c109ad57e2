"""Charts as inline SVG: text stays text, and colours are CSS variables, so that they follow the page, dark or light."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gebm.report.html import Html, element

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Line", "Panel", "curves", "histogram"]

# Stand-ins that matplotlib accepts, by the names of the page's variables (page.css: their colours, after Okabe and Ito,
# which stay apart under colour blindness; lines differ in their dashes too).
COLOURS = {name: f"#0{i}0{i}0{i}" for i, name in enumerate(("ink", "rule", "base", "gebm", "train", "test"), 1)}
DASHES = {"base": (0, (5, 1.5)), "gebm": "-", "train": (0, (1, 1)), "test": (0, (4, 1, 1, 1))}
SIZE = 4.6, 3.0  # inches: 331 x 216 px, which a phone shows whole; text of 8 points in it can still be read
BINS = 40


Values = Sequence[float] | np.ndarray


class Line(NamedTuple):
    """y against x under a name, in the colour of its role (`base`, `gebm`, `train`, `test`), perhaps with a band."""

    name: str
    x: Values
    y: Values
    role: str = "gebm"
    low: Values | None = None
    high: Values | None = None
    level: bool = False  # y, low and high are one number, drawn over the whole width
    width: float = 1.5


class Panel(NamedTuple):
    """Lines over one x axis."""

    xlabel: str
    lines: Sequence[Line]


def curves(panels: Sequence[Panel], ylabel: str, label: str) -> Html:
    """Panels side by side over one y axis; `label` says to a screen reader what is drawn."""
    return _draw(panels, ylabel, label, lambda axes, panel: _lines(axes, panel.lines))


def histogram(groups: Mapping[str, tuple[str, np.ndarray]], xlabel: str, ylabel: str, label: str) -> Html:
    """Densities of groups, name -> (role, values), in the same bins; values outside 0.1 to 99.9 % of all are left out.

    Those few would squeeze the rest into a few bins.
    """
    together = np.concatenate([values for _, values in groups.values()])
    edges = np.histogram_bin_edges(together, BINS, np.quantile(together, (0.001, 0.999)))

    def draw(axes: "Axes", _: Panel) -> None:
        for name, (role, values) in groups.items():
            colour = COLOURS[role]
            density = np.histogram(values, edges)[0] / len(values) / np.diff(edges)
            axes.stairs(density, edges, fill=True, color=colour, alpha=0.12)
            axes.stairs(density, edges, label=name, color=colour, linestyle=DASHES[role], linewidth=1.5)

    return _draw([Panel(xlabel, ())], ylabel, label, draw)


def _lines(axes: "Axes", lines: Sequence[Line]) -> None:
    for line in lines:
        dashes = DASHES[line.role] if line.name else "-"  # that tell names apart
        style: dict[str, Any] = {"color": COLOURS[line.role], "linestyle": dashes, "linewidth": line.width}
        if line.level:
            axes.axhline(line.y[0], label=line.name, **style)
            if line.low is not None and line.high is not None:
                axes.axhspan(line.low[0], line.high[0], color=style["color"], alpha=0.15, linewidth=0)
            continue
        marker = "o" if len(line.x) < 12 and line.width > 1 else None
        axes.plot(line.x, line.y, label=line.name, marker=marker, markersize=3, **style)
        if line.low is not None and line.high is not None:
            axes.fill_between(line.x, line.low, line.high, color=style["color"], alpha=0.2, linewidth=0)


def _draw(panels: Sequence[Panel], ylabel: str, label: str, draw: Callable[["Axes", Panel], None]) -> Html:
    """The frame that all charts share, and the figure as SVG."""
    import matplotlib
    from matplotlib.figure import Figure

    ink, rule = COLOURS["ink"], COLOURS["rule"]
    style: dict[Any, Any] = {
        "svg.fonttype": "none", "svg.hashsalt": label, "text.parse_math": False, "font.size": 8, "axes.edgecolor": ink,
        "axes.labelcolor": ink, "xtick.color": ink, "ytick.color": ink, "text.color": ink, "grid.color": rule,
        "grid.linewidth": 0.5, "axes.grid": True, "axes.axisbelow": True, "axes.spines.top": False,
        "axes.spines.right": False, "axes.linewidth": 0.6, "figure.facecolor": "none", "axes.facecolor": "none",
        "axes.formatter.limits": (-3, 4), "axes.formatter.use_mathtext": False, "lines.solid_capstyle": "round",
    }  # fmt: skip
    with matplotlib.rc_context(style):
        figure = Figure(SIZE, layout="constrained")
        row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, panel in zip(row, panels):
            draw(axes, panel)
            axes.set_xlabel(panel.xlabel)
            axes.locator_params(axis="x", nbins=8 // len(panels))
        row[0].set_ylabel(ylabel)
        named: dict[str, Any] = {}
        for axes in row:
            named |= {text: line for line, text in zip(*axes.get_legend_handles_labels())}
        if len(named) > 1:
            figure.legend(
                [*named.values()], [*named], loc="outside upper left", ncols=2, frameon=False, handlelength=2.6
            )
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return _inline(buffer.getvalue(), label)


def _inline(svg: str, label: str) -> Html:
    """A file of matplotlib's as an element of a page: without prologue, metadata and ids that nothing refers to."""
    svg = svg[svg.index("<svg") :].strip()
    for tag in ("metadata", "style"):  # the style would hold for all of the page
        svg = re.sub(rf"<{tag}.*?</{tag}>", "", svg, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", svg)
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    view_box = re.findall(r'viewBox="([^"]*)"', svg)[0]
    start = element("svg", viewBox=view_box, role="img", aria_label=label)
    return Html(start.removesuffix("</svg>") + svg[svg.index(">") + 1 :])
