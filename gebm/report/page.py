"""One HTML page about a run that needs nothing beside itself: pictures, charts and style lie in it, and no scripts."""

from collections.abc import Callable
from importlib.resources import files

from gebm.report.contents import Report
from gebm.report.html import Html, element, note
from gebm.report.sections import SECTIONS, warnings

__all__ = ["render"]

# The browser itself refuses whatever is not in the file.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def render(report: Report) -> str:
    """The page. A section with nothing to show is left out; one that fails says so in a line, and `missing` why."""
    made = {}

    def tried(title: str, section: Callable[[Report], list[Html]]) -> list[Html]:
        try:
            return section(report)
        except Exception as error:  # whatever a run of another version holds, the rest of its report is made
            report.missing[title] = f"{type(error).__name__}: {error}"
            return []

    doubts = tried("Figures", warnings)
    for title, section in SECTIONS.items():
        content = tried(title, section)
        if title in report.missing:
            content = [*content, note(f"Not shown here: {report.missing[title]}")]
        if content:
            made[title] = content
    names = {title: title.lower().replace(" ", "-") for title in made}
    body = [
        element("h1", f"Run {report.name}"),
        element("nav", *(element("a", title, href=f"#{name}") for title, name in names.items())),
        *doubts,
        *(element("section", element("h2", title), *made[title], id=name) for title, name in names.items()),
    ]
    head = [
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", f"{report.name} - GEBM"),
        element("style", Html(files("gebm.report").joinpath("page.css").read_text(encoding="utf-8"))),
    ]
    document = element("html", element("head", *head), element("body", element("main", *body)), lang="en")
    return f"<!doctype html>\n{document}\n"
