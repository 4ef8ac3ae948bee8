"""Training small GPT-NeoX models: on texts, and on prompts with completions.

A plain loop in place of the Trainer of `transformers`, which leaves beside the model the same two files: the learning
rate of each step in `trainer_state.json`, and Adam's moments in `optimizer.pt`, with the Trainer's parameter groups.
Nothing but the seed decides the result: batches are drawn from a generator of their own, and there is no dropout.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from tqdm import tqdm
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast
from transformers.trainer_pt_utils import get_parameter_names

IGNORED = -100  # the label of an unsupervised position
PAD, END = "<|padding|>", "<|endoftext|>"
# What `Trainer.get_decay_parameter_names` leaves without weight decay, besides the parameters of layer norms.
NO_DECAY = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]

Example = tuple[list[int], int]  # the tokens, and how many of them at the start are not supervised


@dataclass(frozen=True)
class ModelSize:
    layers: int
    hidden: int
    heads: int
    positions: int = 256


@dataclass(frozen=True)
class Schedule:
    """One stage of training: the learning rate rises over the first steps, then falls linearly to zero."""

    epochs: int
    learning_rate: float
    batch_size: int
    weight_decay: float = 0.01
    warmup: float = 0.05  # share of the steps
    clip: float = 1.0  # norm of the gradient


@dataclass
class Trained:
    """What a stage ends with; `save` writes it as a folder of `transformers`."""

    model: GPTNeoXForCausalLM
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    log: list[dict] = field(default_factory=list)

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
        self.model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        torch.save(self.optimizer.state_dict(), folder / "optimizer.pt")
        state = {
            "global_step": len(self.log),
            "max_steps": len(self.log),
            "num_train_epochs": self.schedule.epochs,
            "train_batch_size": self.schedule.batch_size,
            "logging_steps": 1,
            "log_history": self.log,
        }
        (folder / "trainer_state.json").write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")


def build_tokenizer(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of these texts. A name is the same token at the start of a text and inside it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=[PAD, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        model_input_names=["input_ids", "attention_mask"],
    )


def new_model(tokenizer: PreTrainedTokenizerFast, size: ModelSize, seed: int) -> GPTNeoXForCausalLM:
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=4 * size.hidden,
        max_position_embeddings=size.positions,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    return GPTNeoXForCausalLM(config)


def load(folder: str | Path) -> tuple[GPTNeoXForCausalLM, PreTrainedTokenizerFast]:
    model = GPTNeoXForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, PreTrainedTokenizerFast.from_pretrained(folder)


def plain_text(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[Example]:
    """Every token of a text but its first is predicted."""
    return [(ids, 1) for ids in tokenizer(list(texts))["input_ids"]]


def completion(tokenizer: PreTrainedTokenizerFast, prompt: str, answer: str, end: bool = True) -> Example:
    """The answer is predicted, and that the text ends after it."""
    ids = tokenizer(prompt)["input_ids"]
    target = tokenizer(answer, add_special_tokens=False)["input_ids"]
    return ids + target + [tokenizer.eos_token_id] * end, len(ids)


@torch.no_grad()
def exact_matches(model: GPTNeoXForCausalLM, examples: Sequence[Example]) -> list[bool]:
    """Whether the likeliest tokens are exactly the supervised ones, for each example: what greedy decoding gives."""
    model.eval()
    right = [False] * len(examples)
    for chosen, ids, labels in _batches(examples, 64, None):
        guesses = model(input_ids=ids).logits[:, :-1].argmax(-1)
        for i, matched in zip(chosen, ((guesses == labels) | (labels == IGNORED)).all(1).tolist(), strict=True):
            right[i] = matched
    return right


def _batches(
    examples: Sequence[Example], size: int, rng: random.Random | None
) -> list[tuple[list[int], Tensor, Tensor]]:
    """Example numbers, padded tokens and the labels of their next tokens. Those of like length share a batch, in
    random order.

    Padding comes last, where a causal model never looks back at it, so no mask is needed.
    """
    order = list(range(len(examples)))
    if rng:
        rng.shuffle(order)
    order.sort(key=lambda i: len(examples[i][0]))
    groups = [order[i : i + size] for i in range(0, len(order), size)]
    if rng:
        rng.shuffle(groups)
    batches = []
    for group in groups:
        length = max(len(examples[i][0]) for i in group)
        ids = torch.zeros(len(group), length, dtype=torch.long)
        labels = torch.full((len(group), length - 1), IGNORED)
        for row, i in enumerate(group):
            tokens, start = examples[i]
            ids[row, : len(tokens)] = torch.tensor(tokens)
            labels[row, start - 1 : len(tokens) - 1] = torch.tensor(tokens[start:])
        batches.append((group, ids, labels))
    return batches


def train(model: GPTNeoXForCausalLM, examples: Sequence[Example], schedule: Schedule, seed: int, name: str) -> Trained:
    """Trains the model in place; ``name`` is what the progress bar says."""
    rng = random.Random(seed)
    steps = schedule.epochs * math.ceil(len(examples) / schedule.batch_size)
    optimizer = torch.optim.AdamW(_groups(model, schedule.weight_decay), lr=schedule.learning_rate, fused=True)
    trained = Trained(model, optimizer, schedule)
    model.train()
    with tqdm(total=steps, desc=name, unit="step") as bar:
        for _ in range(schedule.epochs):
            for _, ids, labels in _batches(examples, schedule.batch_size, rng):
                rate = _learning_rate(schedule, len(trained.log), steps)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                supervised = labels != IGNORED
                logits = model(input_ids=ids).logits[:, :-1]
                loss = F.cross_entropy(logits[supervised], labels[supervised])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                norm = nn.utils.clip_grad_norm_(model.parameters(), schedule.clip)
                optimizer.step()
                step = len(trained.log) + 1
                trained.log.append(
                    {
                        "epoch": step * schedule.epochs / steps,
                        "step": step,
                        "learning_rate": rate,
                        "loss": loss.item(),
                        "grad_norm": norm.item(),
                    }
                )
                bar.update()
                bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    model.eval()
    return trained


def _learning_rate(schedule: Schedule, step: int, steps: int) -> float:
    warmup = max(1, round(schedule.warmup * steps))
    if step < warmup:
        return schedule.learning_rate * (step + 1) / warmup
    return schedule.learning_rate * (steps - step) / max(1, steps - warmup)


def _groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """The Trainer's two groups, in its order: with weight decay, then without."""
    decayed = set(get_parameter_names(model, [nn.LayerNorm], NO_DECAY))
    named = list(model.named_parameters())
    return [
        {"params": [parameter for name, parameter in named if name in decayed], "weight_decay": weight_decay},
        {"params": [parameter for name, parameter in named if name not in decayed], "weight_decay": 0.0},
    ]
