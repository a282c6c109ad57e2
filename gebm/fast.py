"""The switch between the plain and the fast forms of the same maths."""

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["enabled", "plain"]

_enabled = True


def enabled() -> bool:
    """Whether fast forms are taken: pairs of layers as one, folded norms, cheap double backward passes, CUDA graphs."""
    return _enabled


@contextmanager
def plain(on: bool = True) -> Iterator[None]:
    """Within, every layer and derivative is computed as it is written down (`--fast off`); `on=False` does nothing."""
    global _enabled
    before = _enabled
    _enabled = before and not on
    try:
        yield
    finally:
        _enabled = before
