"""What a pass over data will be made of, foretold from a few of its documents."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from msif.data.batching import WINDOW, TokenBatches, cut_lengths
from msif.data.documents import Batch, Document, collate
from msif.data.encoding import Encoder
from msif.data.tally import Tally
from msif.errors import MsifError

# documents read: so many at first, then up to as many as take so many seconds, and of a large corpus this share
FEW, MANY, SECONDS, SHARE = 8, 512, 3.0, 0.25


@dataclass(frozen=True)
class Plan:
    """The batches of a pass.

    Attributes:
        shapes: (documents, tokens of the longest) -> how many batches of that shape there will be in a window.
        times: number of windows; of a stream, whose end is not known, such that the plan is of one document.
        documents: that a pass takes.
        reading: seconds for all of them to be read and tokenised.
        sample: some of them.
    """

    shapes: Mapping[tuple[int, int], int]
    times: float
    documents: float
    reading: float
    sample: Sequence[Document]

    @property
    def batches(self) -> float:
        return self.times * sum(self.shapes.values())

    @property
    def tokens(self) -> float:
        """Of padded batches."""
        return self.times * sum(count * B * T for (B, T), count in self.shapes.items())

    def part(self, documents: float) -> Plan:
        """The same of fewer documents, or of more."""
        share = documents / self.documents
        return replace(self, times=self.times * share, documents=documents, reading=self.reading * share)

    def small_batch(self, tokens: int, documents: int | None = None) -> Batch:
        """Documents of the sample about as long as those that most tokens stand in, cut to so many tokens in all."""
        ordered = sorted(self.sample, key=len)
        middle = int(np.searchsorted(np.cumsum([len(d) for d in ordered]), sum(map(len, ordered)) / 2))
        length = min(tokens, len(ordered[middle]))
        near = sorted(ordered, key=lambda document: (len(document) < length, abs(len(document) - length)))
        return collate([_cut(document, length) for document in near[: max(1, tokens // length)]][:documents])


def foretell(batches: TokenBatches) -> Plan:
    """The plan of a pass over these batches, whose documents are sampled evenly; of a stream, the first."""
    taken, asked, seconds = _timed(batches, FEW)
    most = MANY if batches.size is None else max(8 * FEW, SHARE * batches.size)
    more = int(min(MANY, most, FEW * SECONDS / seconds))
    if asked == FEW and more > FEW:
        taken, asked, seconds = _timed(batches, more)
    if not taken:
        raise MsifError(f"none of {asked} rows of '{batches.corpus.name}' has anything to predict: check the fields.")
    documents = 1 if batches.size is None else batches.size * len(taken) / asked  # without rows that are passed over
    kept = len(taken) if batches.size is None else max(1, min(WINDOW, round(documents)))
    # each length stands for its share of a window, which is cut into batches as it will be
    lengths = np.sort([len(document) for document in taken])[::-1]
    lengths = lengths[np.arange(kept) * len(lengths) // kept]
    shapes: Counter[tuple[int, int]] = Counter()
    start = 0
    for count in cut_lengths(lengths.tolist(), batches.batch_tokens):
        shapes[count, int(lengths[start])] += 1
        start += count
    return Plan(shapes, documents / kept, documents, seconds / len(taken) * documents, taken)


def _timed(batches: TokenBatches, count: int) -> tuple[list[Document], int, float]:
    """Some documents, of how many rows, and the seconds that they took."""
    rows, size, corpus, format = batches.indices, batches.size, batches.corpus, batches.format
    if size is not None:
        all_rows, count = range(size) if rows is None else rows, min(count, size)
        rows = [all_rows[place * size // count] for place in range(count)]
    # by itself, for what it skips and cuts is not the whole
    encoder = Encoder(format, batches.tokenizer, batches.max_length, corpus.where, corpus.exact)
    start = time.perf_counter()
    read = islice(corpus.rows(rows, columns=format.columns), count)
    return list(encoder.documents(read, Tally())), count, time.perf_counter() - start


def _cut(document: Document, length: int) -> Document:
    return replace(document, input_ids=document.input_ids[:length], supervised=document.supervised[:length])
