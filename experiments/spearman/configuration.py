"""The sizes of the experiment: one that ends within 25 minutes on two CPU cores, and the paper's for a GPU."""

from __future__ import annotations

from dataclasses import dataclass

# dampings by name: a number is absolute, the other two are one number for each block
RELATIVE, NATURAL = "0.1 relative", "natural"


@dataclass(frozen=True)
class Configuration:
    """Everything that decides a result, and nothing else.

    Attributes:
        length: tokens of a sequence; the text is cut into sequences of this many.
        solving: sequences, drawn from the training text, that H is taken over.
        candidates: training sequences that every query scores.
        batch_size: sequences of a batch, in all passes over data.
        dampings: absolute ones as numbers in text, "0.1 relative" (to a block's mean Λ), "natural" (1/τ of a block).
        detailed: the damping at which the ablations are run, and the curves that are long.
        dense_parts: the truth by a Cholesky factor of H itself, which is put together in so many tasks; 0 solves by
            preconditioned CG, in at most ``truth_iterations`` for a relative residual of ``truth_tolerance``.
        cg, preconditioned, lissa, preconditioned_lissa: iterations after which scores are taken.
        long_cg, long_preconditioned: the same for the two CGs at the detailed damping.
        arnoldi: (iterations, eigenpairs kept), once for all dampings.
        trak_models: checkpoints for TRAK, each trained on a random half.
        kernel: training sequences of TRAK's and LoGra's kernels.
        fitting: numbers of sequences for the ablation of EK-FAC's fitting data, from the training text.
        label_samples: numbers of labels a sequence for the ablation of its draws.
        full: iterations for the truth over all parameters at the detailed damping.
    """

    layers: int
    hidden: int
    heads: int
    vocabulary: int
    length: int
    epochs: int
    learning_rate: float
    train_batch: int
    solving: int
    candidates: int
    queries: int
    batch_size: int
    dampings: tuple[str, ...] = ("1e-3", "1e-4", "1e-5", RELATIVE, NATURAL)
    detailed: str = "1e-4"
    dense_parts: int = 0
    truth_tolerance: float = 1e-4
    truth_iterations: int = 3000
    cg: tuple[int, ...] = (5, 10, 20, 40)
    long_cg: tuple[int, ...] = (5, 10, 20, 40, 80, 160, 320, 480, 640)
    preconditioned: tuple[int, ...] = (0, 1, 2, 4, 8, 12, 20, 32)
    long_preconditioned: tuple[int, ...] = (0, 1, 2, 4, 8, 12, 20, 32, 48, 64, 96)
    lissa: tuple[int, ...] = (100, 400)
    preconditioned_lissa: tuple[int, ...] = (20, 80)
    arnoldi: tuple[int, int] = (200, 20)
    trak_models: int = 10
    trak_dimension: int = 4096
    kernel: int = 2000
    fitting: tuple[int, ...] = (32, 256, 2048)
    label_samples: tuple[int, ...] = (4, 32)
    full: int = 200


SMALL = Configuration(
    layers=2,
    hidden=16,
    heads=2,
    vocabulary=512,
    length=32,
    epochs=4,
    learning_rate=5e-3,
    train_batch=32,
    solving=32,
    candidates=500,
    queries=10,
    batch_size=32,
    dense_parts=4,
    lissa=(50, 200),
    full=100,
    trak_dimension=1024,
)

PAPER = Configuration(
    layers=2,
    hidden=256,
    heads=2,
    vocabulary=8192,
    length=256,
    epochs=10,
    learning_rate=1e-3,
    train_batch=32,
    solving=1500,
    candidates=500,
    queries=10,
    batch_size=64,
    cg=(10, 50, 200, 500),
    long_cg=(10, 20, 50, 100, 200, 500, 1000, 2000),
    lissa=(100, 1000, 10000),
    preconditioned_lissa=(100, 1000),
    arnoldi=(200, 20),
    fitting=(64, 256, 1024, 4096),
    full=1000,
)

# for tests: every method, in seconds
TINY = Configuration(
    layers=1,
    hidden=8,
    heads=2,
    vocabulary=300,
    length=8,
    epochs=1,
    learning_rate=1e-2,
    train_batch=16,
    solving=8,
    candidates=12,
    queries=2,
    batch_size=8,
    dampings=("1e-2", RELATIVE, NATURAL),
    detailed="1e-2",
    dense_parts=2,
    cg=(2,),
    long_cg=(2, 4),
    preconditioned=(0, 2),
    long_preconditioned=(0, 2, 4),
    lissa=(4,),
    preconditioned_lissa=(4,),
    arnoldi=(8, 4),
    trak_models=2,
    trak_dimension=32,
    kernel=16,
    fitting=(4,),
    label_samples=(2,),
    full=5,
)

SIZES = {"small": SMALL, "paper": PAPER, "tiny": TINY}
