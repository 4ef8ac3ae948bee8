"""Batches by token budget, in a deterministic order."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, islice, pairwise
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from msif.data.corpus import Corpus
from msif.data.documents import Batch, Document, collate
from msif.data.encoding import Encoder, fingerprint_tokenizer
from msif.data.format import Format
from msif.data.tally import Tally
from msif.errors import MsifError

log = logging.getLogger(__name__)

WINDOW = 8192
# of a batch's tokens at most
PADDING = 0.25
# of which corpora it was said what is skipped and cut, and with which limits: once, however many passes go over them
_said: WeakKeyDictionary[Corpus, set[Any]] = WeakKeyDictionary()


def plan_batches(
    documents: Iterable[Document], *, batch_tokens: int, window: int = WINDOW, seed: int | None = None
) -> Iterator[list[Document]]:
    """Group documents of like length into batches of B documents and T tokens, padded, with B·T ≤ `batch_tokens`.

    Documents are read a window at a time, sorted by length within it (longest first, so that memory runs out early
    if it does) and cut into batches, of which no more than a quarter is padding; a document above the budget is a batch
    of its own. With a seed the batches of
    a window come in a permuted order, so that growing shares of the data are not shares by length. The same
    documents and arguments give the same batches.
    """
    if batch_tokens < 1:
        raise MsifError(f"A batch of {batch_tokens} tokens holds nothing; give --batch-tokens of at least 1.")
    iterator = iter(documents)
    number = 0
    while chunk := list(islice(iterator, window)):
        batches = _cut(sorted(chunk, key=len, reverse=True), batch_tokens)
        if seed is not None:
            order = np.random.default_rng([seed, number]).permutation(len(batches))
            batches = [batches[place] for place in order]
        yield from batches
        number += 1


def _cut(documents: list[Document], batch_tokens: int) -> list[list[Document]]:
    """Documents, longest first, in batches."""
    ends = list(accumulate(cut_lengths([len(document) for document in documents], batch_tokens)))
    return [documents[start:end] for start, end in pairwise([0, *ends])]


def cut_lengths(lengths: Sequence[int], batch_tokens: int) -> list[int]:
    """How many documents each batch takes, of lengths that descend."""
    counts: list[int] = []
    start = 0
    while start < len(lengths):
        longest, count, tokens = max(1, lengths[start]), 1, lengths[start]
        while start + count < len(lengths) and longest * (count + 1) <= batch_tokens:
            tokens += lengths[start + count]
            if tokens < (1 - PADDING) * longest * (count + 1):
                break
            count += 1
        counts.append(count)
        start += count
    return counts


def spread(batches: TokenBatches, count: int | None) -> TokenBatches:
    """Only so many sequences of a corpus, evenly; None keeps all, as does a stream."""
    size = batches.corpus.size
    if count is None or size is None or count >= size:
        return batches
    return replace(batches, indices=[place * size // count for place in range(count)])


def batches_of(documents: Sequence[Document], batch_tokens: int, *, pad_id: int = 0) -> list[Batch]:
    """Batches of documents in memory, longest first; `Batch.indices` tells which is which."""
    return [collate(group, pad_id) for group in plan_batches(documents, batch_tokens=batch_tokens)]


def batches_anew(documents: Sequence[Document], batch_tokens: int) -> list[Batch]:
    """The same of documents that are numbered 0 … n−1 by their order here, whatever their numbers were."""
    return batches_of([replace(document, index=number) for number, document in enumerate(documents)], batch_tokens)


@dataclass(frozen=True)
class TokenBatches:
    """A corpus as batches; each iteration reads and tokenises it anew, so that it need not fit in memory.

    Rows with nothing to predict are skipped. How many they are, and how many documents are cut, is said at the end of
    the first iteration. Batches come sorted by length; `Batch.indices` are the documents' row numbers, by which results
    are put back into the original order.

    Attributes:
        corpus, format, tokenizer: what is read, and how.
        max_length: longest document in tokens; None does not cut.
        batch_tokens: most tokens of a padded batch, B·T.
        indices: only these rows; None is all.
        seed: permutes the batches of each window; None leaves them longest first.
        window: documents sorted at a time.
    """

    corpus: Corpus
    format: Format
    tokenizer: Any
    max_length: int | None = 512
    batch_tokens: int = 8192
    indices: Sequence[int] | None = None
    seed: int | None = None
    window: int = WINDOW

    @property
    def size(self) -> int | None:
        """Number of rows, of which some may be skipped: for progress and estimates. None for all of a stream."""
        return self.corpus.size if self.indices is None else len(self.indices)

    def __iter__(self) -> Iterator[Batch]:
        return self.iterate()

    def iterate(self, skip: int = 0) -> Iterator[Batch]:
        """Batches from number `skip` on; those before it are planned, which takes their tokens, but not built."""
        plan = plan_batches(self.documents(), batch_tokens=self.batch_tokens, window=self.window, seed=self.seed)
        for group in islice(plan, skip, None):
            yield collate(group)  # padding is never read, and a tokenizer's own may be beyond the model's embedding

    def identity(self) -> dict[str, Any]:
        """What tells these batches from others, as JSON; it reads the corpus once."""
        roles = ("text", "prompt", "completion", "messages", "label")
        names = ("max_length", "batch_tokens", "seed", "window")
        return {
            "content": self.corpus.fingerprint(self.format.columns),
            "rows": self.corpus.size,
            "indices": None if self.indices is None else [int(index) for index in self.indices],
            "fields": {role: getattr(self.format, role) for role in roles},
            "tokenizer": fingerprint_tokenizer(self.tokenizer),
            **self._rule(),
            **{name: getattr(self, name) for name in names},
        }

    def _rule(self) -> dict[str, Any]:
        """How rows become tokens where that is more than the tokenizer's affair."""
        if self.format.kind == "messages":
            return {"tokens": {"chat template": self.tokenizer.chat_template}}
        return {"tokens": "prompt and completion together"} if self.format.kind == "pair" else {}

    def documents(self) -> Iterator[Document]:
        """The documents one by one, in the order of the corpus.

        Raises:
            MsifError: no row has anything to predict; as of `Encoder.documents`.
        """
        name, tally = self.corpus.name, Tally()
        encoder = Encoder(self.format, self.tokenizer, self.max_length, self.corpus.where, self.corpus.exact)
        yield from encoder.documents(self.corpus.rows(self.indices, columns=self.format.columns), tally)
        tally.check(name, self.max_length)
        said, limits = _said.setdefault(self.corpus, set()), (self.format.columns, self.max_length)
        if limits not in said:
            said.add(limits)
            for line in tally.lines(name, self.max_length):
                log.warning(line)
