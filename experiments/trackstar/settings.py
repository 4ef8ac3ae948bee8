"""The size of a run, and the configurations that it compares."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from msif.errors import MsifError
from msif.index.settings import IndexSettings


@dataclass(frozen=True)
class Sizes:
    """
    Attributes:
        facts: that are asked, as many known to the model as not where there are enough.
        top: numbers of proponents that a tail-patch is averaged over; the last is that of tables.
        blocks, projection: of the index.
        learning_rate: of a tail-patch's step, with Adam's moments as training left them.

    Raises:
        MsifError: a number with which nothing can be measured.
    """

    facts: int = 100
    top: tuple[int, ...] = (1, 3, 5, 10)
    blocks: int = 4
    projection: int = 16
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        if self.facts < 4:
            raise MsifError(f"--facts is {self.facts}: give 4 or more.")
        if not self.learning_rate > 0:
            raise MsifError(f"--learning-rate is {self.learning_rate:g}: it must be above 0.")


@dataclass(frozen=True)
class Configuration:
    """TrackStar with some of its corrections.

    Attributes:
        name: as tables show it.
        moments: "optimizer" or "none".
        r, normalize: see ``IndexScorer``.
        settings: of the index, beside its size.
        measurement: of queries.
    """

    name: str
    moments: str = "optimizer"
    r: str = "mixed"
    normalize: str = "unit"
    settings: dict[str, Any] = field(default_factory=dict)
    measurement: str = "loss"

    def index(self, sizes: Sizes) -> IndexSettings:
        return IndexSettings(
            **{"blocks": sizes.blocks, "projection": sizes.projection, "dtype": "float32", **self.settings}
        )


TRACKSTAR = Configuration("TrackStar")
STEPS = (
    Configuration("gradient dot product", "none", "none", "none"),
    Configuration("1: unit norm", "none", "none"),
    Configuration("2: unit norm, R", "none", "train"),
    Configuration("3: unit norm, V", r="none"),
    Configuration("4: unit norm, V and R", r="train"),
    TRACKSTAR,
    Configuration("mixed R without V", "none"),
    Configuration("V and mixed R without unit norm", normalize="none"),
)
"""The published ablations, in their order; TrackStar is the fifth experiment."""


def ablations() -> Iterator[tuple[str, Configuration]]:
    """(what is varied, configuration): output functions, dimensions, λ of R, storage."""
    for measurement in ("loss", "margin", "logit"):
        yield (
            "output function",
            replace(TRACKSTAR, name=measurement, settings={"measurement": measurement}, measurement=measurement),
        )
    plain = Configuration(
        "margin, Q of each token, no unit norm", "none", "train", "none", {"measurement": "margin"}, "margin"
    )
    yield "output function", plain
    by_example = {"measurement": "margin", "weighting": "example"}
    yield "output function", replace(plain, name="margin, Q of each example, no unit norm", settings=by_example)
    for size in (2, 4, 8, 16, 32):
        yield "dimension", replace(TRACKSTAR, name=f"{size} × {size} of a block", settings={"projection": size})
    for mix in ("0", "0.5", "0.9", "0.99", "0.999"):
        yield "λ of R", replace(TRACKSTAR, name=f"λ = {mix}", r=f"mixed:{mix}")
    yield "storage", replace(TRACKSTAR, name="in bfloat16", settings={"dtype": "bfloat16"})
    yield "storage", replace(TRACKSTAR, name="in 8 bits", settings={"dtype": "int8"})
    yield "second moments", replace(TRACKSTAR, name="estimated from documents", moments="estimate")
