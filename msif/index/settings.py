"""What an index holds of each document, and how it holds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from msif.errors import MsifError

MOMENTS = ("auto", "optimizer", "adam", "adafactor", "estimate", "none")
MEASUREMENTS = ("loss", "margin", "logit")
WEIGHTINGS = ("token", "example", "none")
BASES = ("random", "leading")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.int8}


@dataclass(frozen=True)
class IndexSettings:
    """G(z) before R and unit norm: P_d (∇ ⊘ √V) of TrackStar (Chang et al. 2024, arXiv 2410.17413), or P_d H^(−1/2) ∇.

    Attributes:
        blocks: groups of consecutive layers; attention and the rest are blocks of their own in each.
        projection: p of the p × p features of a block.
        seed: of the random matrices.
        measurement: what is differentiated of a document: "loss", "margin", or "logit".
        weighting: how its tokens count where that is not the loss itself: "token", each one's ∂loss/∂measurement;
            "example", their mean for the whole document; "none".
        basis: "random" projections; or "leading", the entries of H^(−1/2) ∇ in EK-FAC's eigenbasis with the largest
            expected contribution, for an index with factors.
        tied: whether an unembedding that is tied to the embedding takes part.
        dtype: of what is stored; int8 and float16 have a scale for each document and block.

    Raises:
        MsifError: a value that is none of these.
    """

    blocks: int = 8
    projection: int = 64
    seed: int = 0
    measurement: str = "loss"
    weighting: str = "token"
    basis: str = "random"
    tied: bool = False
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        for name in ("blocks", "projection"):
            if getattr(self, name) < 1:
                raise MsifError(f"--{name} is {getattr(self, name)}: it must be 1 or more.")
        if not 0 <= self.seed < 2**64:
            raise MsifError(f"the projection's seed is {self.seed}: it must be 0 or larger, and below 2**64.")
        for name, known in (
            ("measurement", MEASUREMENTS),
            ("weighting", WEIGHTINGS),
            ("basis", BASES),
            ("dtype", tuple(DTYPES)),
        ):
            if getattr(self, name) not in known:
                raise MsifError(f"--{name} is {getattr(self, name)!r}: choose one of {', '.join(known)}.")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> IndexSettings:
        return cls(**values)
