"""Float32 products at the speed of a GPU's tensor cores, where that costs nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import Lock
from typing import Any

import torch
from torch import nn


def products_of(model: nn.Module) -> Callable[[], AbstractContextManager[None]]:
    """Makes the context of products with what a model's hooks hand over.

    Sides of a 16-bit model are exact in TF32 (11 bits; bfloat16 has 8, float16 11) and their products are summed in
    float32: A, G and gradients of its maps come out as from float32 itself, several times as fast. Whatever else is in
    float32 beside them (eigenvectors, queries, weights of a tied vocabulary's rows) is rounded to 2⁻¹¹, no more than
    float16 rounds the sides themselves. Elsewhere torch's own setting stays.

    Only around these products: the model's own, such as those of rotary angles, need all of float32.
    """
    narrow = any(p.is_cuda and p.dtype in (torch.bfloat16, torch.float16) for p in model.parameters())
    return tf32 if narrow else nullcontext


# the setting is one of the whole process
_lock, _inside = Lock(), dict[str, Any](depth=0, before=None)


@contextmanager
def tf32() -> Iterator[None]:
    """TF32 for float32 products on CUDA devices inside; the setting as it was after the last one that is inside."""
    matmul = torch.backends.cuda.matmul
    # the older name raises where a user has set the newer, which torch has from 2.9
    name, value = ("fp32_precision", "tf32") if hasattr(matmul, "fp32_precision") else ("allow_tf32", True)
    with _lock:
        if not _inside["depth"]:
            _inside["before"] = getattr(matmul, name)
            setattr(matmul, name, value)
        _inside["depth"] += 1
    try:
        yield
    finally:
        with _lock:
            _inside["depth"] -= 1
            if not _inside["depth"]:
                setattr(matmul, name, _inside["before"])
