"""What is held at once: modules in groups whose sums and factors fit the memory that there is (docs/method.md)."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import psutil
import torch
from torch import nn

from msif import distributed
from msif.errors import MsifError
from msif.models import sharding
from msif.models.blocks import TrackedModule

# of an output of the model: itself and its gradient, of which one float32 copy is made
OUTPUT_BYTES = 2 * 4
# of what is free; the rest is for activations and temporaries
SHARE = 0.7


def room_beside(models: Iterable[nn.Module], outputs: float, memory: int | None) -> int:
    """Bytes for sums, factors and vectors beside models that are loaded and a batch's outputs; the least of a process.

    Args:
        outputs: how many numbers a batch's outputs are; of them and of their gradient one float32 copy is made.
        memory: of the device in all; None takes a share of what it has free.

    Raises:
        MsifError: nothing is left.
    """
    return min(distributed.gathered(_room_here(list(models), outputs, memory)))


def _room_here(models: Sequence[nn.Module], outputs: float, memory: int | None) -> int:
    weights, device = weight_bytes(models), next(models[0].parameters()).device
    if memory is None:
        return sys.maxsize if device.type == "meta" else int(SHARE * _free(device) - OUTPUT_BYTES * outputs)
    left = int(memory - weights - OUTPUT_BYTES * outputs)
    if left <= 0:
        raise MsifError(
            f"--memory is {memory / 1e9:.3g} GB; weights take {weights / 1e9:.3g} and a batch's outputs "
            f"{OUTPUT_BYTES * outputs / 1e9:.3g}: give more, a smaller --batch-tokens, or --dtype bfloat16."
        )
    return left


def weight_bytes(models: Iterable[nn.Module]) -> int:
    """Of each parameter once, however many models have it."""
    different = {id(parameter): parameter for model in models for parameter in model.parameters()}.values()
    return sum(map(sharding.held_bytes, different))


def _free(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available // distributed.processes_here()


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


@dataclass(frozen=True)
class Residency:
    """What a fit holds of its modules.

    Attributes:
        groups: module -> the one with which it shares its input.
        tokens: of a batch.
        size: bytes of a number.
    """

    tracked: Sequence[TrackedModule]
    groups: Mapping[str, str]
    tokens: int
    size: int

    def bytes_of(self, names: Sequence[str], part: str) -> int:
        """Of these modules at once, while "eigenvectors" or "lambda" are made."""
        wanted = set(names)
        modules = [module for module in self.tracked if module.name in wanted]
        total = 0
        for module in modules:
            leads = self.groups[module.name] == module.name
            if part == "lambda":
                total += lambda_bytes(module, leads, self.size, self.tokens)
            else:
                total += covariance_bytes(module, leads, self.size)
        return total if part == "lambda" else total + decomposition_bytes(modules)

    def work_of(self, names: Sequence[str], part: str) -> float:
        """What making the files of these modules of their sums takes, in units that only compare."""
        if part == "lambda":
            return float(self.bytes_of(names, part))
        modules = [module for module in self.tracked if module.name in set(names)]
        right = [m.shape[1] for m in modules if m.column_basis == "eigenvectors" and self.groups[m.name] == m.name]
        left = [(len(m.blocks), m.block_rows) for m in modules if m.row_basis == "eigenvectors"]
        return float(sum(d**3 for d in right) + sum(blocks * r**3 for blocks, r in left))

    def owners(self, files: Mapping[str, Sequence[str]], part: str, processes: int) -> tuple[dict[str, int], float]:
        """File -> the process that makes it, the largest first, each to whoever has least to do; the largest share.

        Args:
            files: name -> modules.
        """
        work = {file: self.work_of(names, part) for file, names in files.items()}
        loads, owners = [0.0] * processes, {}
        for file in sorted(work, key=lambda file: -work[file]):
            owners[file] = min(range(processes), key=loads.__getitem__)
            loads[owners[file]] += work[file]
        return owners, max(loads) / (sum(loads) or 1.0)

    def partition(self, files: Mapping[str, Sequence[str]], part: str, memory: int) -> list[list[str]]:
        """Names of files in their order, in as few groups as fit: each a pass over the data.

        Args:
            files: name -> modules.

        Raises:
            MsifError: one file alone does not fit.
        """
        groups: list[list[str]] = []
        held: list[str] = []
        for file, names in files.items():
            alone = self.bytes_of(names, part)
            if alone > memory:
                raise MsifError(
                    f"'{file.removesuffix('.safetensors')}' takes {alone / 1e9:.3g} GB, and beside the model there are "
                    f"{memory / 1e9:.3g}: give a larger --memory, or fewer --modules."
                )
            if groups and self.bytes_of([*held, *names], part) <= memory:
                groups[-1].append(file)
                held += names
            else:
                groups.append([file])
                held = list(names)
        return groups
