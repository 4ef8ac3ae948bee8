"""A tokenizer for models on disk."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def save_tokenizer(folder: Path, pad: str | None = "<pad>", more: int = 0) -> None:
    words = {word: i for i, word in enumerate(["<pad>", "<unk>", *"abcdefg", *(f"w{n}" for n in range(more))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"unk_token": "<unk>"} | ({"pad_token": pad} if pad else {})
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
