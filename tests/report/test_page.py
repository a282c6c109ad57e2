"""The page as a browser shows it, and as text."""

import importlib.util
import json
import re
import shutil
from pathlib import Path

import pytest

from gebm.cli import main
from gebm.commands.report import write_report

spec = importlib.util.spec_from_file_location("chromium", Path(__file__).with_name("chromium.py"))
chromium = importlib.util.module_from_spec(spec)
spec.loader.exec_module(chromium)

HOSTILE = """x"><img src=x onerror=alert(1)><script>alert(2)</script>&amp;$x^$'"""
TRAINED = ["Figures", "What was run", "Samples", "Energies", "Nearest training images", "Training"]
SAMPLED = [*TRAINED[:3], "Along the chains", *TRAINED[3:5], "Sampler"]
COMPLAINTS = (
    *("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled"),
    *("Page.javascriptDialogOpening", "Network.loadingFailed"),
)
LOOK = """({
    titles: [...document.querySelectorAll("h2")].map(e => e.textContent),
    images: document.images.length,
    broken: [...document.images].filter(i => !(i.complete && i.naturalWidth > 0)).length,
    charts: [...document.querySelectorAll("svg")].filter(e => e.getBoundingClientRect().height > 100).length,
    ids: [...document.querySelectorAll("[id]")].map(e => e.id),
    targets: [...document.querySelectorAll("nav a")].every(a => document.querySelector(a.getAttribute("href"))),
    width: document.documentElement.scrollWidth,
    text: document.body.innerText,
})"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if chromium.EXECUTABLE is None:
        pytest.skip("no Chromium here (Debian: apt install chromium)")
    with chromium.Chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def look(browser, page: Path, width: int) -> dict:
    """What the browser shows; it must complain of nothing, fetch nothing, and fit the width."""
    browser.open(page, width)
    seen = browser.evaluate(LOOK)
    methods = [event.get("method") for event in browser.events]
    for complaint in COMPLAINTS:
        assert complaint not in methods, [e for e in browser.events if e.get("method") == complaint]
    sent = [e["params"]["request"]["url"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"]
    assert [url for url in sent if not url.startswith("data:")] == [page.resolve().as_uri()]
    assert seen["broken"] == 0 and seen["targets"] and len(set(seen["ids"])) == len(seen["ids"])
    assert seen["width"] <= width
    return seen


@pytest.mark.parametrize("run, titles, charts, images", [("trained", TRAINED, 6, 10), ("sampled", SAMPLED, 5, 20)])
@pytest.mark.parametrize("width", [400, 1400])
def test_a_browser_shows_all_of_it(browser, made, run, titles, charts, images, width):
    seen = look(browser, made / run / "report.html", width)
    assert seen["titles"] == titles
    assert seen["charts"] >= charts and seen["images"] >= images
    assert "undefined" not in seen["text"] and "nan" not in seen["text"].split()


def test_nothing_a_run_holds_becomes_markup(browser, runs):
    """Names, settings, keys of the log and of the summary come from users, and from whoever sent the run."""
    run = Path(shutil.copytree(runs / "sampled", runs / f"{HOSTILE.replace('/', '')}"))
    config, summary = run / "config.yaml", json.loads((run / "summary.json").read_text())
    quoted = HOSTILE.replace("'", "''")
    config.write_text(re.sub(r"(?m)^(log_name|fid_weights): .*$", rf"\1: '{quoted}'", config.read_text()))
    summary.update(
        warning=HOSTILE, features=HOSTILE, split=HOSTILE, distance=HOSTILE, sampler=HOSTILE,
        metrics={HOSTILE: summary["metrics"][summary["distance"]]},
    )  # fmt: skip
    (run / "summary.json").write_text(json.dumps(summary))
    rows = [{"stage": "joint", "g_step": g, f"{HOSTILE}_base": 1.0} for g in (1, 2)]
    (run / "stats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = write_report(run)
    assert "<script" not in page.read_text() and "<img src=x" not in page.read_text()
    seen = look(browser, page, 400)
    assert seen["titles"] == [*SAMPLED, "Training"]
    assert seen["text"].count("<script>alert(2)</script>&amp;$x^$'") >= 6  # in charts too, where it is no formula
    assert "Not shown here" not in seen["text"]


def test_the_page_refers_to_nothing_outside_of_it(made):
    for page in made.glob("*/report.html"):
        text = page.read_text()
        places = re.findall(r'(?:src|href|srcset|action|data)="([^"]*)"', text) + re.findall(r"url\(([^)]*)\)", text)
        assert places and all(place.startswith(("data:image/", "#")) for place in places)
        assert page.stat().st_size < 2e6


def test_figures_are_those_of_the_summary(made):
    summary = json.loads((made / "sampled" / "summary.json").read_text())
    text = re.sub(r"<[^>]+>", " ", (made / "sampled" / "report.html").read_text())
    for name, metric in summary["metrics"].items():
        interval = r"\s+[-\d.e]+ to [-\d.e]+\s+"
        row = re.search(rf"{re.escape(name)}\s+{metric['better']} is better\s+([-\d.e]+){interval}([-\d.e]+)", text)
        assert [float(x) for x in row.groups()] == pytest.approx(
            [metric["base"]["value"], metric["gebm"]["value"]], rel=0.006
        )
    assert f"{summary['n_fake']} samples, {summary['n_real']} images of digits test" in text
    assert summary["warning"] and summary["warning"] in text
    assert "gebm sample --d_path" in " ".join(text.split()) and "--lmc_gamma" not in text  # 1e-2 is the default


def test_what_is_gone_is_named_in_one_line_and_the_rest_is_shown(runs, capsys):
    shutil.rmtree(runs / "trained" / "checkpoints")
    config = runs / "sampled" / "config.yaml"
    text = config.read_text().replace("dataset: digits", "dataset: folder:gone")
    config.write_text(re.sub("(?m)^([gd]_path): .*$", r"\1: gone/base", text))
    for run in ("trained", "sampled"):
        capsys.readouterr()
        assert main(["report", str(runs / run)]) == 0
        warned = [line for line in capsys.readouterr().out.splitlines() if "could not show" in line]
        assert len(warned) == 1 and "energies" in warned[0]
    assert "holds no checkpoint" in (runs / "trained" / "report.html").read_text()
    text = (runs / "sampled" / "report.html").read_text()
    assert "Not shown here: gone/base: no such file" in text and "folder:gone" in text
    assert all(f"<h2>{title}</h2>" in text for title in SAMPLED)  # also the energies, of the samples


@pytest.mark.parametrize("name, content", [
    ("summary.json", "{"), ("stats.jsonl", "{nonsense}\n"), ("samples.npz", "PK"), ("trace.npz", ""),
    ("samples.png", ""),
])  # fmt: skip
def test_a_damaged_file_does_not_stop_the_report(runs, name, content):
    (runs / "sampled" / name).write_text(content)
    text = write_report(runs / "sampled").read_text()
    assert "<h2>What was run</h2>" in text
    assert ("Not shown here" in text) == (name != "samples.png")


@pytest.mark.parametrize("make", [
    lambda runs: [], lambda runs: ["gone"], lambda runs: [str(runs)], lambda runs: [str(runs / "trained"), "b"],
    lambda runs: ["--device", "-2"], lambda runs: [str(next((runs / "trained" / "checkpoints").iterdir()))],
])  # fmt: skip
def test_what_is_not_a_run_is_refused_in_one_line(runs, make, capsys):
    before = sorted(runs.rglob("*"))
    assert main(["report", *make(runs)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("gebm: error: ") and error.count("\n") == 1
    assert sorted(runs.rglob("*")) == before


def test_help_needs_no_run(capsys):
    assert main(["report", "--help"]) == 0
    assert "gebm report [--from_untrusted] RUN" in capsys.readouterr().out
