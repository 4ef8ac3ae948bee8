"""What a result depends on: versions, and the documents that were scored."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from hashlib import blake2b
from importlib import metadata
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from msif.data.corpus import Corpus
    from msif.data.format import Format

SAMPLED = 1000  # documents that stand for all: those of another corpus differ among them, too


@cache
def version(name: str) -> str:
    """Read once: it takes a while, and a run asks for it several times."""
    return metadata.version(name)


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("msif", "torch", "transformers")} | {"cuda": str(torch.version.cuda)}


def fingerprint_documents(corpus: Corpus, format: Format, rows: Sequence[int]) -> str:
    """Hash of how many documents these rows are and of what they say, whatever their fields are called."""
    sample = rows[:: max(1, -(-len(rows) // SAMPLED))]
    digest = blake2b(str(len(rows)).encode(), digest_size=16)
    for number, row in corpus.rows(sample, columns=format.columns):
        text = format.text_of(row, f"row {number}").encode("utf-8", "surrogatepass")
        digest.update(f"\n{number} {len(text)} ".encode() + text)
    return digest.hexdigest()
