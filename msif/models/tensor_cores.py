"""Float32 products at the speed of a GPU's tensor cores, where that costs nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

NARROW = (torch.bfloat16, torch.float16)


def products_of(model: nn.Module) -> Callable[[], AbstractContextManager[None]]:
    """Makes the context of products with what a model's hooks hand over.

    Sides of a 16-bit model are exact in TF32 (11 bits; bfloat16 has 8, float16 11) and their products are summed in
    float32: A, G and gradients come out as from float32 itself, several times as fast. Where the other factor is
    float32, it is rounded to 2⁻¹², below the rounding of the sides. Elsewhere torch's own setting stays.

    Only around products: the model's own, such as those of rotary angles, need all of float32.
    """
    narrow = any(p.is_cuda and p.dtype in NARROW for p in model.parameters())
    return tf32 if narrow else nullcontext


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, of two dimensions each, in total's dtype.

    16-bit factors go to tensor cores as they are, which add up their exact products in float32.
    """
    # torch has such products from 2.8, for CUDA alone
    if (
        left.is_cuda
        and left.dtype in NARROW
        and total.dtype == torch.float32
        and hasattr(torch.ops.aten.addmm, "dtype")
    ):
        torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
    else:
        total.addmm_(left.to(total.dtype), right.to(total.dtype))


@contextmanager
def tf32() -> Iterator[None]:
    """TF32 for float32 products on CUDA devices inside; the setting as it was after."""
    matmul = torch.backends.cuda.matmul
    # the older name raises where a user has set the newer, which torch has from 2.9
    name, value = ("fp32_precision", "tf32") if hasattr(matmul, "fp32_precision") else ("allow_tf32", True)
    before = getattr(matmul, name)
    setattr(matmul, name, value)
    try:
        yield
    finally:
        setattr(matmul, name, before)
