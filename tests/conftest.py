import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data (`GEBM_DATA`, default `../shared/data` beside the checkout); skips where it is absent."""
    path = Path(os.environ.get("GEBM_DATA", ROOT.parent / "shared" / "data"))
    if not (path / "cifar10").is_dir():
        pytest.skip(f"no real data at {path} (set GEBM_DATA)")
    return path
