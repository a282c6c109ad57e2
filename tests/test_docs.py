"""The pages say what is there."""

import re
from pathlib import Path

import pytest

from gebm.config import Config
from gebm.flags import by_name

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#]+)", page.read_text())
    missing = [link for link in links if not link.startswith("http") and not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_flags_named_are_flags(page):
    other = re.compile("benchmarks/|torchrun|accelerate")  # programs with flags of their own
    ours = [line for line in page.read_text().splitlines() if not other.search(line)]
    known = {*by_name(Config), "config", "configs", "help"}
    assert set(re.findall(r"(?<![-\w])--(\w+)", "\n".join(ours))) <= known


def test_every_sampler_has_its_line():
    from gebm.samplers import SAMPLERS

    text = (ROOT / "docs" / "samplers.md").read_text()
    assert all(f"| `{name}` | `{kernel.__name__}` |" in text for name, kernel in SAMPLERS.items())
