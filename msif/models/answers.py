"""What a model answers by itself: greedy completions and predicted classes."""

from __future__ import annotations

from typing import Any

import torch

from msif.errors import MsifError
from msif.models.heads import problem_of


@torch.no_grad()
def greedy_completion(
    model: Any, tokenizer: Any, prompt: str, max_new_tokens: int = 32, positions: int | None = None
) -> str:
    """The text with which the model greedily continues a prompt, without its end-of-text token.

    Args:
        positions: the model's longest sequence; the answer ends there at the latest.

    Raises:
        MsifError: the prompt leaves no room for an answer, or the model ends the text at once.
    """
    ids = torch.tensor([tokenizer(prompt)["input_ids"]], device=next(model.parameters()).device)
    if ids.shape[1] == 0:
        raise MsifError("the prompt has no tokens: give a longer --query.")
    if positions is not None:
        max_new_tokens = min(max_new_tokens, positions - ids.shape[1])
        if max_new_tokens < 1:
            raise MsifError(
                f"the prompt has {ids.shape[1]} tokens and the model {positions} positions: shorten --query."
            )
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    was_training = model.training
    model.eval()
    try:
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            num_beams=1,
            max_new_tokens=max_new_tokens,
            pad_token_id=pad if pad is not None else 0,
        )
    finally:
        model.train(was_training)
    # decoded with its prompt, because some tokenizers drop the first space of a text
    before = tokenizer.decode(ids[0], skip_special_tokens=True)
    # the limit of tokens can fall within a character
    answer = str(tokenizer.decode(out[0], skip_special_tokens=True)[len(before) :]).rstrip("\ufffd")
    if not answer.strip():
        raise MsifError(f"the model answers nothing to {prompt!r}: give a --completion.")
    return answer


@torch.no_grad()
def predicted_label(model: Any, tokenizer: Any, text: str, max_length: int) -> int | float | list[float] | list[str]:
    """What a classification head predicts for a text: a class's index, the names of all that are likelier than not, or
    a regression's number or numbers."""
    ids = torch.tensor([tokenizer(text)["input_ids"][:max_length]], device=next(model.parameters()).device)
    was_training = model.training
    model.eval()
    try:
        outputs = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].float()
    finally:
        model.train(was_training)
    problem = problem_of(model.config)
    if problem == "multi_label_classification":
        return [str(model.config.id2label[index]) for index in (outputs > 0).nonzero().flatten().tolist()]
    if problem == "regression":
        numbers: list[float] = outputs.tolist()
        return numbers if len(numbers) > 1 else numbers[0]
    return int(outputs.argmax())
