"""Counter-based random numbers: what is drawn depends on four numbers, and on no order, batch or device."""

from __future__ import annotations

import numpy as np


def generator(seed: int, stream: int, repeat: int = 0, number: int = 0) -> np.random.Generator:
    """The generator of these four numbers. Streams: 1 and 2 label draws of the two fitting
    passes, 3 LiSSA's batches, 4 power iterations, 5 Arnoldi's start, 6 LoGra's labels, 7 the bootstrap, 8 a random
    order, 9 halves, 10 noise of first weights."""
    return np.random.Generator(np.random.Philox(key=[seed, stream * 2**32 + repeat], counter=[0, 0, 0, number]))
