"""The pages say what is there."""

import re
from importlib import import_module
from pathlib import Path

import pytest
import yaml

import gebm
from gebm.config import Config
from gebm.flags import by_name

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")),
    *sorted((ROOT / "docs").rglob("*.md")),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#]+)", page.read_text())
    missing = [link for link in links if not link.startswith("http") and not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_flags_named_are_flags(page):
    other = re.compile("benchmarks/|examples/|tests/|--tiny|torchrun|accelerate")  # programs with flags of their own
    ours = [line for line in page.read_text().splitlines() if not other.search(line)]
    known = {*by_name(Config), "config", "configs", "help", "version", "completion", "strict"}
    assert set(re.findall(r"(?<![-\w])--(\w+)", "\n".join(ours))) <= known


def test_every_sampler_has_its_line():
    from gebm.samplers import SAMPLERS

    text = (ROOT / "docs" / "samplers.md").read_text()
    assert all(f"| `{name}` | `{kernel.__name__}` |" in text for name, kernel in SAMPLERS.items())


def test_every_public_name_is_in_the_api_reference_with_an_example():
    pages = "".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    documented = {
        id(getattr(module, name))
        for module in map(import_module, re.findall(r"automodule:: (\S+)", pages))
        for name in module.__all__
    }
    for name in gebm.__all__:
        thing = getattr(gebm, name)
        assert id(thing) in documented, name
        assert ">>>" in thing.__doc__ or name == "load_chain", name  # that is in save_chain's


def test_the_site_s_index_names_every_page():
    index = (ROOT / "docs" / "index.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.stem == "index" or re.search(rf"^{page.stem}\??$", index, re.M), page.name


def test_the_version_is_the_same_everywhere():
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)[1]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == version and citation["preferred-citation"]["url"] in (ROOT / "README.md").read_text()
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)[1] == version


def test_lowest_constraints_are_the_bounds_of_the_ranges():
    table = (ROOT / "pyproject.toml").read_text()
    core = table.partition("\ndependencies = [")[2].partition("]")[0]
    test = table.partition("\ntest = [")[2].partition("]\n")[0]
    bounds = {name.lower(): bound for name, bound in re.findall(r'"([\w-]+)>=([\d.]+)"', core + test)}
    pinned = dict(re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / "constraints-lowest.txt").read_text(), re.M))
    assert bounds.keys() - {"torch"} == pinned.keys()
    for name, version in pinned.items():  # 1.4 and 1.4.0, or the first of that series that there is
        assert version == bounds[name] or version.startswith(bounds[name] + "."), name
