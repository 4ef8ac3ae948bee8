"""Rows to tokens and supervision masks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from msif.data.chat import encode_chat
from msif.data.documents import Document
from msif.data.format import Format
from msif.data.messages import check_messages
from msif.data.tally import Strict, Tally
from msif.data.tokens import pair_tokens, plain
from msif.errors import MsifError

CHUNK = 512  # rows tokenised in one call, so that a fast tokenizer can use its threads

Row = tuple[int, Mapping[str, Any]]


@dataclass(frozen=True)
class Encoder:
    """Turns rows into Documents.

    Plain text is `tokenizer(text)` and supervises every token but the first. A pair is prompt + completion tokenised
    together, with a beginning token where the tokenizer has one and nothing at the end; it supervises the completion,
    to which a token that spans both belongs. A conversation is rendered by the chat template and supervises the
    assistant's turns. A classifier's text supervises no token: its label is what is predicted. Nothing else is
    added, and what exceeds `max_length` is cut off on the right.

    Attributes:
        format: which fields are what.
        tokenizer: a Hugging Face tokenizer.
        max_length: longest document in tokens; None does not cut.
        describe: how a message names a row, from its number.
        exact: whether rows hold no null but what was written, see `check_messages`.
    """

    format: Format
    tokenizer: Any
    max_length: int | None = None
    describe: Callable[[int], str] = "row {}".format
    exact: bool = True

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 1:
            raise MsifError(f"A length of {self.max_length} tokens holds nothing; give --max-length of at least 1.")

    def documents(self, rows: Iterable[Row], tally: Tally | None = None) -> Iterator[Document]:
        """Encode rows as they come, in order; those with nothing to predict are skipped, and counted in `tally`.

        Raises:
            MsifError: names the row with a field of a wrong type, an unknown label, or messages that the chat template
                does not take or in which the assistant's turns cannot be told.
        """
        tally = Tally() if tally is None else tally
        iterator = iter(rows)
        while chunk := list(islice(iterator, CHUNK)):
            tally.read += len(chunk)
            yield from self._encode(chunk, tally)

    def encode(self, rows: Sequence[Row], tally: Strict | None = None) -> list[Document]:
        """Encode rows that are at hand, all of them; those that truncation shortens are noted in `tally`.

        Raises:
            UnusableError: names the row with an empty field or too few tokens, or whose completion truncation cut off.
            MsifError: as of `documents`.
        """
        return list(self._encode(rows, Strict() if tally is None else tally))

    def masked(
        self, index: int, ids: Sequence[int], supervised: Sequence[bool], tally: Strict | None = None
    ) -> Document:
        """A document of tokens that are known already; raises UnusableError if nothing is left to predict."""
        (document,) = self._truncated(index, ids, supervised, Strict() if tally is None else tally)
        return document

    def _encode(self, rows: Sequence[Row], tally: Tally) -> Iterator[Document]:
        """Documents of the rows that have something to predict."""
        rows = [(index, row) for index, row in rows if self._is_filled(index, row, tally)]
        kind, tokenizer = self.format.kind, self.tokenizer
        if kind == "messages":
            for index, row in rows:
                messages = check_messages(row.get(str(self.format.messages)), self.describe(index), self.exact)
                yield from self._truncated(index, *encode_chat(tokenizer, messages, self.describe(index)), tally)
        elif kind == "pair":
            pairs = pair_tokens(
                tokenizer, self._texts(rows, self.format.prompt), self._texts(rows, self.format.completion)
            )
            for (index, _), pair in zip(rows, pairs, strict=True):
                supervised = np.arange(len(pair.ids)) >= pair.before[0]
                yield from self._truncated(index, pair.ids, supervised, tally)
        else:
            texts = plain(tokenizer, self._texts(rows, self.format.text))
            for (index, row), ids in zip(rows, texts, strict=True):
                if kind == "text":
                    yield from self._truncated(index, ids, np.ones(len(ids), dtype=bool), tally)
                else:
                    yield from self._labelled(index, row, ids, tally)

    def _is_filled(self, index: int, row: Mapping[str, Any], tally: Tally) -> bool:
        reason = self.format.lacks(row, self.describe(index))
        if reason is not None:
            tally.skip(index, reason)
        return reason is None

    def _texts(self, rows: Sequence[Row], field: str | None) -> list[str]:
        assert field is not None
        return [self.format.read(row, field, self.describe(index)) for index, row in rows]

    def _labelled(self, index: int, row: Mapping[str, Any], ids: list[int], tally: Tally) -> Iterator[Document]:
        where = self.describe(index)
        label = self.format.label_of(row, where)
        if not ids:
            tally.skip(index, f"The text of {where} has no tokens; leave the row out.")
            return
        kept = np.asarray(ids[: self.max_length], dtype=np.int32)
        if len(kept) < len(ids):
            tally.shorten(index, len(kept), len(ids))
        yield Document(index, kept, np.zeros(len(kept), dtype=bool), label)

    def _truncated(
        self, index: int, ids: Sequence[int], supervised: Sequence[bool] | np.ndarray, tally: Tally
    ) -> Iterator[Document]:
        """The document, if truncation leaves something to predict."""
        mask = np.array(supervised, dtype=bool)
        mask[:1] = False  # nothing predicts the first token
        kept = mask[: self.max_length]
        if not kept.any():
            tally.skip(index, self._nothing_left(self.describe(index), len(ids), mask), cut_off=bool(mask.any()))
            return
        if len(kept) < len(mask):
            tally.shorten(index, int(kept.sum()), int(mask.sum()))
        yield Document(index, np.asarray(ids[: self.max_length], dtype=np.int32), kept)

    def _nothing_left(self, where: str, length: int, mask: np.ndarray) -> str:
        if mask.any():
            what = {"pair": "the whole completion", "messages": "every assistant turn"}.get(
                self.format.kind, "every token that could be predicted"
            )
            return (
                f"Truncation to {self.max_length} tokens cuts off {what} of {where}, which begins at token "
                f"{int(mask.argmax()) + 1}; raise --max-length as far as the model has positions, or leave it out."
            )
        return (
            f"Nothing can be predicted in {where}, of {length} token{'s' * (length != 1)}: "
            "it needs a token that follows another; leave the row out."
        )


def fingerprint_tokenizer(tokenizer: Any) -> str:
    """SHA-256 (hexadecimal) of what turns text into ids: vocabulary, merges, special tokens, normalisation.

    Padding and truncation are no part of it: calls change them.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and hasattr(backend, "to_str"):
        description = json.loads(backend.to_str())
        description = {key: value for key, value in description.items() if key not in ("padding", "truncation")}
    else:
        description = [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())]
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
