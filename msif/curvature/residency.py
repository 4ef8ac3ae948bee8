"""What is held at once: modules in groups whose sums and factors fit the memory that there is (docs/method.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import psutil
import torch

from msif.errors import MsifError
from msif.models.blocks import TrackedModule

# of what is free; the rest is for activations and temporaries
SHARE = 0.7


def free_memory(device: torch.device) -> int:
    """Bytes that sums, factors and vectors may take where nothing is said: a share of what the device has free."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
    else:
        free = psutil.virtual_memory().available
    return int(SHARE * free)


def covariance_bytes(module: TrackedModule, leads: bool, size: int) -> int:
    """Of A, where the module leads those that share it, and of G; in numbers of ``size`` bytes."""
    (d_out, d), r = module.shape, module.block_rows
    A = d * d if module.column_basis == "eigenvectors" else d
    G = d_out * r if module.row_basis == "eigenvectors" else d_out
    return size * (leads * A + G)


def lambda_bytes(module: TrackedModule, leads: bool, size: int, tokens: int) -> int:
    """Of both bases, Λ, and the rotated inputs of a batch of so many tokens."""
    d_out, d = module.shape
    return covariance_bytes(module, leads, size) + size * (d_out * d + leads * tokens * d)


def decomposition_bytes(modules: Sequence[TrackedModule]) -> int:
    """Of the largest eigendecomposition: the matrix in float64, its eigenvectors, and as much to work in."""
    squares = [module.shape[1] ** 2 for module in modules if module.column_basis == "eigenvectors"]
    squares += [module.block_rows**2 for module in modules if module.row_basis == "eigenvectors"]
    return 4 * 8 * max(squares, default=0)


def partition(
    files: Mapping[str, Sequence[str]], bytes_of: Callable[[Sequence[str]], int], memory: int
) -> list[list[str]]:
    """Files in their order, as few groups as fit: each a pass over the data.

    Args:
        files: name -> modules.

    Raises:
        MsifError: one file alone does not fit.
    """
    groups: list[list[str]] = []
    held: list[str] = []
    for file, names in files.items():
        alone = bytes_of(names)
        if alone > memory:
            raise MsifError(
                f"'{file.removesuffix('.safetensors')}' takes {alone / 1e9:.3g} GB, and there are {memory / 1e9:.3g} "
                "for sums and factors: give a larger --memory, or fewer --modules."
            )
        if groups and bytes_of([*held, *names]) <= memory:
            groups[-1].append(file)
            held += names
        else:
            groups.append([file])
            held = list(names)
    return groups
