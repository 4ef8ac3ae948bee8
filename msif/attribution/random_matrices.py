"""Random matrices from a counter-based generator: signs, normal numbers, and count sketches.

Their entries come from the raw bits of Philox (Salmon et al. 2011) keyed by a seed and a label, and depend on nothing
else: not on device, order of modules or numpy's version. Fewer rows are the first ones of more rows.
"""

from __future__ import annotations

import hashlib

import numpy as np


def sign_matrix(p: int, d: int, seed: int, label: str) -> np.ndarray:
    """Independent signs, int8, (p, d)."""
    width = -(-d // 64)
    raw = _words(seed, label, p * width).astype("<u8").view(np.uint8)
    bits = np.unpackbits(raw, bitorder="little").reshape(p, width * 64)[:, :d]
    return 1 - 2 * bits.astype(np.int8)


def normal_matrix(p: int, d: int, seed: int, label: str) -> np.ndarray:
    """Independent standard normal numbers, float64, (p, d), by the transform of Box and Muller (1958)."""
    pairs = -(-d // 2)
    words = _words(seed, label, 2 * p * pairs).reshape(p, pairs, 2) >> np.uint64(11)
    uniform = (words.astype(np.float64) + 0.5) * 2.0**-53  # never 0 or 1
    radius, angle = np.sqrt(-2 * np.log(uniform[..., 0])), 2 * np.pi * uniform[..., 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1).reshape(p, 2 * pairs)[:, :d]


def count_sketch(features: int, dimension: int, seed: int, label: str) -> tuple[np.ndarray, np.ndarray]:
    """For each feature its column in 0 … dimension − 1, int64, and its sign, int8; both (features,)."""
    words = _words(seed, label, features)
    index = (words >> np.uint64(1)) % np.uint64(dimension)
    signs = 1 - 2 * (words & np.uint64(1)).astype(np.int8)
    return index.astype(np.int64), signs


def _words(seed: int, label: str, count: int) -> np.ndarray:
    name = int.from_bytes(hashlib.sha256(label.encode()).digest()[:8], "little")
    return np.random.Philox(key=np.array([seed, name], dtype=np.uint64)).random_raw(count)
