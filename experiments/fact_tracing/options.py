"""What the command line says; light, for its help."""

from __future__ import annotations

from dataclasses import dataclass, field

DAMPINGS = ("1e-6", "1e-5", "1e-4", "1e-3", "1e-2", "1e-1", "0.1mean", "auto")


@dataclass(frozen=True)
class Sizes:
    """
    Attributes:
        trials, facts: so many facts a trial, no fact in two of them.
        bm25, same_target, random: sentences of each kind among a fact's candidates.
        few: the first so many of a trial are asked of methods that are dear.
    """

    trials: int = 3
    facts: int = 40
    bm25: int = 100
    same_target: int = 100
    random: int = 100
    few: int = 4


@dataclass(frozen=True)
class FitOptions:
    """
    Attributes:
        examples: at most so many sequences of a stage's data, spread evenly; None takes all.
        label_samples: label draws a sequence and pass.
    """

    examples: int | None = None
    label_samples: int = 1
    seed: int = 0


@dataclass(frozen=True)
class CGOptions:
    """The solver: at most so many products over so many sequences of a stage."""

    dampings: tuple[str, ...] = ("0.1mean",)
    iterations: int = 10
    examples: int = 256


@dataclass(frozen=True)
class Options:
    """
    Attributes:
        dampings: numbers, multiples of the mean of a block's Λ ("0.1mean"), or "auto" (1/τ of the stage).
        other_dampings: of what is not swept over all of them: α, other measurements, no hop, heads that are not
            split, the unembedding.
        embedding_model: folder or hub name; None is all-MiniLM-L6-v2.
    """

    dampings: tuple[str, ...] = DAMPINGS
    other_dampings: tuple[str, ...] = ("0.1mean",)
    cg: CGOptions = field(default_factory=CGOptions)
    fit: FitOptions = field(default_factory=FitOptions)
    embedding_model: str | None = None
    seed: int = 0
