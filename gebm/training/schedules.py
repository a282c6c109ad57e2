"""When which network is trained."""

__all__ = ["BOOST_EVERY", "energy_steps"]

BOOST_EVERY = 500


def energy_steps(g_step: int, n_iter_d: int, n_iter_d_init: int) -> int:
    """Energy steps before base step `g_step`: `n_iter_d_init` at 0 and at every 500th, else `n_iter_d`."""
    return n_iter_d_init if g_step % BOOST_EVERY == 0 else n_iter_d
