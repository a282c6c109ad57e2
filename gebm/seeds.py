"""Independent random streams from one seed."""

import numpy as np

__all__ = ["stream"]


def stream(seed: int, *key: int | str) -> int:
    """A 32-bit seed for the purpose `key`, unrelated to that of any other purpose.

    Not longer: of a longer seed, torch's generator on the CPU drops all but the low 32 bits.
    """
    words = [int.from_bytes(k.encode(), "little") if isinstance(k, str) else k for k in key]
    return int(np.random.SeedSequence((int(seed), *words)).generate_state(1)[0])
