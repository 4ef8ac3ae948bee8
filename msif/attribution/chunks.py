"""Queries in chunks whose vectors fit into memory; each chunk is a pass over candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from msif.attribution.cost import Cost
from msif.data.batching import batches_of
from msif.data.documents import Batch, Document
from msif.errors import MsifError

NUMBER = 4  # bytes


def capacities(cost: Cost, memory: int) -> tuple[int, int]:
    """How many queries' vectors fit while they are made, and how many once they are.

    Where vectors shrink when they are made (a rank), either takes half of the memory.

    Raises:
        MsifError: not one of them fits.
    """
    making, vector = NUMBER * max(cost.making, 1.0), NUMBER * max(cost.vector, 1.0)
    at_once, made, kept = int(memory // making), int(memory / 2 // making), int(memory / 2 // vector)
    if made < 1 or kept <= at_once:
        made = kept = at_once
    if kept < 1:
        raise MsifError(
            f"one query takes {making / 1e9:.3g} GB while its vectors are made, and there are "
            f"{memory / 1e9:.3g} for it: give a larger --memory, or fewer --modules."
        )
    return min(made, kept), kept


def chunks_of(
    documents: Sequence[Document], cost: Cost, memory: int, batch_tokens: int
) -> list[tuple[range, list[Batch]]]:
    """For each pass over candidates, which queries it serves, and their batches, numbered from 0.

    Args:
        documents: the queries, in order.

    Raises:
        MsifError: see ``capacities``.
    """
    made, kept = capacities(cost, memory)
    result = []
    for start in range(0, len(documents), kept):
        places = range(start, min(start + kept, len(documents)))
        own = [replace(documents[place], index=place - start) for place in places]
        batches = [
            batch for first in range(0, len(own), made) for batch in batches_of(own[first : first + made], batch_tokens)
        ]
        result.append((places, batches))
    return result
