import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Whole commands, trainings and scripts: what `--quick` leaves out, besides tests marked slow.
WHOLE = ("commands", "_command", "examples", "gallery", "benchmarks", "doc_blocks", "collected")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="leave out slow tests and those of whole commands")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--quick"):
        left = [item for item in items if item.get_closest_marker("slow") or item.path.stem.endswith(WHOLE)]
        config.hook.pytest_deselected(items=left)
        gone = {*left}
        items[:] = [item for item in items if item not in gone]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data (`GEBM_DATA`, default `../shared/data` beside the checkout); skips where it is absent."""
    path = Path(os.environ.get("GEBM_DATA", ROOT.parent / "shared" / "data"))
    if not (path / "cifar10").is_dir():
        pytest.skip(f"no real data at {path} (set GEBM_DATA)")
    return path
