"""When which network is trained, and how fast."""

__all__ = ["BOOST_EVERY", "energy_steps", "remaining"]

BOOST_EVERY = 500  # base steps


def energy_steps(g_step: int, n_iter_d: int, n_iter_d_init: int) -> int:
    """Energy steps before base step `g_step`: `n_iter_d_init` at 0 and at every 500th, else `n_iter_d`."""
    return n_iter_d_init if g_step % BOOST_EVERY == 0 else n_iter_d


def remaining(step: int, steps: int) -> float:
    """The part of `steps` still to do before step `step`: a factor that falls linearly from 1 towards 0."""
    return 1 - step / steps
