"""What a model answers by itself: greedy completions and predicted classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from msif.data.tokens import plain, said_after
from msif.errors import UnusableError
from msif.models.heads import problem_of


@dataclass(frozen=True)
class Answer:
    """A model's own answer.

    Attributes:
        ids: the tokens that it generated, without the one that ends the text.
        text: what they say, for display and search.
    """

    ids: tuple[int, ...]
    text: str


@torch.no_grad()
def greedy_completion(
    model: Any, tokenizer: Any, prompt_ids: Sequence[int], max_new_tokens: int = 32, positions: int | None = None
) -> Answer:
    """How the model greedily goes on from a prompt's tokens: always the likeliest token, whatever else its
    generation_config asks for (beams, penalties, stop strings, ...); of that only the tokens that end a text are taken.

    Args:
        positions: the model's longest sequence; the answer ends there at the latest.

    Raises:
        UnusableError: the prompt leaves no room for an answer, or the model ends the text at once.
    """
    if not prompt_ids:
        raise UnusableError("the prompt has no tokens: give a longer one.")
    if positions is not None:
        max_new_tokens = min(max_new_tokens, positions - len(prompt_ids))
        if max_new_tokens < 1:
            raise UnusableError(
                f"the prompt has {len(prompt_ids)} tokens and the model {positions} positions: shorten the query."
            )
    ends = _end_tokens(model, tokenizer)
    said = _generate(model, prompt_ids, max_new_tokens, ends)
    ids = said[: next((place for place, token in enumerate(said) if token in ends), len(said))]
    text = answer_text(tokenizer, prompt_ids, ids)
    if not text.strip():
        asked = tokenizer.decode(list(prompt_ids), skip_special_tokens=True)
        raise UnusableError(f"the model answers nothing to {asked!r}: give a completion.")
    return Answer(tuple(ids), text)


def answer_text(tokenizer: Any, prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> str:
    """What an answer's tokens say, without control tokens."""
    text = said_after(tokenizer, prompt_ids, answer_ids, skip_special_tokens=True)
    # part of a character, if the limit of tokens falls within its first
    return text or tokenizer.decode(list(answer_ids), skip_special_tokens=True)


def _end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """The tokens that end a text, by the model's generation_config and by the tokenizer."""
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    tokens = [tokenizer.eos_token_id, *(own if isinstance(own, (list, tuple)) else [own])]
    return {int(token) for token in tokens if token is not None}


def _generate(model: Any, prompt_ids: Sequence[int], count: int, ends: set[int]) -> list[int]:
    """At most so many likeliest tokens in turn, up to and including one that ends the text."""
    from transformers import GenerationConfig

    greedy = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=count,
        eos_token_id=sorted(ends) or None,
        pad_token_id=min(ends, default=0),  # nothing is padded
    )
    ids = torch.tensor([list(prompt_ids)], device=next(model.parameters()).device)
    with _evaluated(model), _without_configuration(model):
        out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=greedy)
    return out[0, ids.shape[1] :].tolist()


@contextmanager
def _without_configuration(model: Any) -> Iterator[None]:
    """The model's own generation_config is away: `generate` fills from it what the one that it is given leaves open."""
    from transformers import GenerationConfig

    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


@contextmanager
def _evaluated(model: Any) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@torch.no_grad()
def predicted_label(model: Any, tokenizer: Any, text: str, max_length: int) -> int | float | list[float] | list[str]:
    """What a classification head predicts for a text: a class's index, the names of all that are likelier than not, or
    a regression's number or numbers.

    Raises:
        UnusableError: the text has no tokens.
    """
    (tokens,) = plain(tokenizer, [text])
    if not tokens:
        raise UnusableError(f"the text {text!r} has no tokens: give a longer one.")
    ids = torch.tensor([tokens[:max_length]], device=next(model.parameters()).device)
    with _evaluated(model):
        outputs = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].float()
    problem = problem_of(model.config)
    if problem == "multi_label_classification":
        return [str(model.config.id2label[index]) for index in (outputs > 0).nonzero().flatten().tolist()]
    if problem == "regression":
        numbers: list[float] = outputs.tolist()
        return numbers if len(numbers) > 1 else numbers[0]
    return int(outputs.argmax())
