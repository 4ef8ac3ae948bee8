"""Take a query's top documents out of pre-training, train both stages again, and look at the query's loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from experiments.retraining.settings import Sizes
from experiments.retraining.trainings import Retrainings, Training
from msif.draws import generator
from msif.errors import MsifError

REMOVAL_STREAM = 21
RANDOM, OPPONENTS = "random documents", "opponents by "
TAUGHT = "what retrainings on halves teach"
"""The best additive score that this project knows: no method, for it has seen the truth."""

Orders = Mapping[str, np.ndarray]
"""Title -> the order in which each query's documents are taken out of each pair's pre-training: (S, Q, N)."""


@dataclass(frozen=True)
class Changes:
    """What taking documents out does to the query that they were chosen for; (R, Q) of R pairs a query.

    Attributes:
        losses: of the query, after less before.
        probabilities: of its answer, after less before.
    """

    losses: np.ndarray
    probabilities: np.ndarray


def removal_orders(scores: Mapping[str, np.ndarray], opponents_of: str, sizes: Sizes) -> dict[str, np.ndarray]:
    """By each method's scores of each pair, (S, Q, N), or (1, Q, N) where pairs do not differ: the first is the
    strongest proponent; ties by row. And by chance; and by ``opponents_of``, the strongest opponent first."""
    _, queries, documents = next(iter(scores.values())).shape
    draw = generator(sizes.seed, REMOVAL_STREAM)
    orders = {RANDOM: np.array([[draw.permutation(documents) for _ in range(queries)] for _ in range(sizes.seeds)])}
    return orders | proponents_first({**scores, OPPONENTS + opponents_of: -scores[opponents_of]}, sizes)


def proponents_first(scores: Mapping[str, np.ndarray], sizes: Sizes) -> dict[str, np.ndarray]:
    """By each method's scores alone, see ``removal_orders``."""
    orders = {title: np.argsort(-values, axis=2, kind="stable") for title, values in scores.items()}
    return {title: np.broadcast_to(order, (sizes.seeds, *order.shape[1:])) for title, order in orders.items()}


def measure_removals(retrainings: Retrainings, orders: Orders, sizes: Sizes) -> dict[tuple[str, int], Changes]:
    """(title, k) -> the changes by taking out each query's first k documents.

    Each training is compared with the pair's own on all documents: the same first weights, and the same batches but
    for what is missing.

    Raises:
        MsifError: as many documents are to be removed as there are.
    """
    documents = len(retrainings.world.texts)
    if max(sizes.removed) >= documents:
        raise MsifError(
            f"--removed {max(sizes.removed)} of {documents} documents leaves nothing: give smaller numbers."
        )
    pairs, seeds = np.array(sizes.pairs_of_removals).T, sizes.training_seeds  # pairs: (R, Q)
    keys = [(title, k) for title in orders for k in sizes.removed]
    trainings = [
        Training.without(orders[title][pair, query, :k], seeds[pair])
        for title, k in keys
        for (_, query), pair in np.ndenumerate(pairs)
    ]
    after = retrainings.losses(trainings, "trainings without documents").reshape(len(keys), *pairs.shape, -1)
    before = retrainings.losses([Training(seed) for seed in seeds], "trainings on all documents")
    queries = np.arange(sizes.queries)
    own, whole = after[:, :, queries, queries], before[pairs, queries]  # each query's loss, without its own documents
    return {
        key: Changes(losses - whole, np.exp(-losses) - np.exp(-whole)) for key, losses in zip(keys, own, strict=True)
    }
