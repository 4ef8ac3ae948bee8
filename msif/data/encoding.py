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
from msif.data.format import Format, check_messages
from msif.errors import MsifError

CHUNK = 512  # rows tokenised in one call, so that a fast tokenizer can use its threads

Row = tuple[int, Mapping[str, Any]]


@dataclass(frozen=True)
class Encoder:
    """Turns rows into Documents.

    Plain text is `tokenizer(text)` and supervises every token but the first. A pair is `tokenizer(prompt)` followed
    by `tokenizer(completion, add_special_tokens=False)` and supervises the completion. A conversation supervises
    the assistant's turns. A classifier's text supervises no token: its label is what is predicted. Nothing else is
    added, and what exceeds `max_length` is cut off on the right.

    Attributes:
        format: which fields are what.
        tokenizer: a Hugging Face tokenizer.
        max_length: longest document in tokens; None does not cut.
        describe: how a message names a row, from its number.
    """

    format: Format
    tokenizer: Any
    max_length: int | None = None
    describe: Callable[[int], str] = "row {}".format

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 1:
            raise MsifError(f"A length of {self.max_length} tokens holds nothing; give --max-length of at least 1.")

    def documents(self, rows: Iterable[Row]) -> Iterator[Document]:
        """Encode rows as they come, in order."""
        iterator = iter(rows)
        while chunk := list(islice(iterator, CHUNK)):
            yield from self.encode(chunk)

    def encode(self, rows: Sequence[Row]) -> list[Document]:
        """Encode rows that are at hand.

        Raises:
            MsifError: names the row with an empty field, an unknown label, too few tokens, or a completion that
                truncation cut off entirely.
        """
        format = self.format
        if not rows:  # a tokenizer cannot encode nothing
            return []
        if format.kind == "messages":
            return [self._conversation(index, row) for index, row in rows]
        if format.kind == "pair":
            prompts = self._ids(rows, format.prompt, special=True)
            completions = self._ids(rows, format.completion, special=False)
            return [
                self._document(index, prompt + completion, [False] * len(prompt) + [True] * len(completion))
                for (index, _), prompt, completion in zip(rows, prompts, completions, strict=True)
            ]
        texts = self._ids(rows, format.text, special=True)
        if format.kind == "text":
            return [self._document(index, ids, [True] * len(ids)) for (index, _), ids in zip(rows, texts, strict=True)]
        return [self._labelled(index, row, ids) for (index, row), ids in zip(rows, texts, strict=True)]

    def _ids(self, rows: Sequence[Row], field: str | None, *, special: bool) -> list[list[int]]:
        assert field is not None
        texts = [self.format.read(row, field, self.describe(index)) for index, row in rows]
        # Asked not to truncate or pad: a tokenizer file can carry such settings, and they would be obeyed.
        return self.tokenizer(texts, add_special_tokens=special, truncation=False, padding=False, verbose=False)[
            "input_ids"
        ]

    def _conversation(self, index: int, row: Mapping[str, Any]) -> Document:
        where = self.describe(index)
        messages = check_messages(row.get(str(self.format.messages)), where)
        return self._document(index, *encode_chat(self.tokenizer, messages, where))

    def _labelled(self, index: int, row: Mapping[str, Any], ids: list[int]) -> Document:
        where = self.describe(index)
        if not ids:
            raise MsifError(f"The text of {where} has no tokens; leave the row out.")
        kept = np.asarray(ids[: self.max_length], dtype=np.int32)
        return Document(index, kept, np.zeros(len(kept), dtype=bool), self.format.label_of(row, where))

    def _document(self, index: int, ids: list[int], supervised: list[bool]) -> Document:
        """Truncate, and make sure that something is left to predict."""
        mask = np.asarray(supervised, dtype=bool)
        mask[:1] = False  # nothing predicts the first token
        kept = mask[: self.max_length]
        if not kept.any():
            raise MsifError(self._nothing_left(self.describe(index), len(ids), mask))
        return Document(index, np.asarray(ids[: self.max_length], dtype=np.int32), kept)

    def _nothing_left(self, where: str, length: int, mask: np.ndarray) -> str:
        if mask.any():
            what = {"pair": "the whole completion", "messages": "every assistant turn"}.get(
                self.format.kind, "every token that could be predicted"
            )
            return (
                f"Truncation to {self.max_length} tokens cuts off {what} of {where}, which begins at token "
                f"{int(mask.argmax()) + 1}; raise --max-length or leave the row out."
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
