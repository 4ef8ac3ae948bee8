"""Training small GPT-NeoX models: on texts, on prompts with completions, and as classifiers.

A plain loop in place of the Trainer of `transformers`, which leaves beside the model the same two files: the learning
rate of each step in `trainer_state.json`, and Adam's moments in `optimizer.pt`, with the Trainer's parameter groups.
Nothing but the seed decides the result: batches are drawn from a generator of their own, and there is no dropout.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from tqdm import tqdm
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, GPTNeoXPreTrainedModel, PreTrainedTokenizerFast
from transformers.trainer_pt_utils import get_parameter_names

IGNORED = -100  # the label of an unsupervised position
PAD, END = "<|padding|>", "<|endoftext|>"
# What `Trainer.get_decay_parameter_names` leaves without weight decay, besides the parameters of layer norms.
NO_DECAY = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]

# the tokens, and how many of them at the start are not supervised; for a classifier the tokens and the class
Example = tuple[list[int], int]


@dataclass(frozen=True)
class Task:
    """What is predicted from B padded examples of T tokens: P labels each, of V classes.

    Attributes:
        labels: (examples, T) -> (B, P), IGNORED where nothing is supervised.
        logits: (model, token ids (B, T)) -> (B, P, V), or (B, V) where labels are (B,).
    """

    labels: Callable[[Sequence[Example], int], Tensor]
    logits: Callable[[nn.Module, Tensor], Tensor]


def _next_tokens(examples: Sequence[Example], length: int) -> Tensor:
    labels = torch.full((len(examples), length - 1), IGNORED)
    for row, (tokens, start) in enumerate(examples):
        labels[row, start - 1 : len(tokens) - 1] = torch.tensor(tokens[start:])
    return labels


NEXT_TOKENS = Task(_next_tokens, lambda model, ids: model(input_ids=ids).logits[:, :-1])
CLASSES = Task(
    lambda examples, length: torch.tensor([label for _, label in examples]),
    lambda model, ids: model(input_ids=ids).logits,
)


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
    """What a stage ends with, or has after some of its steps; `save` writes it as a folder of `transformers`."""

    model: GPTNeoXPreTrainedModel
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    steps: int
    log: list[dict] = field(default_factory=list)

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
        self.model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        torch.save(self.optimizer.state_dict(), folder / "optimizer.pt")
        state = {
            "global_step": len(self.log),
            "max_steps": self.steps,
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
def exact_matches(model: nn.Module, examples: Sequence[Example]) -> list[bool]:
    """Whether the likeliest tokens are exactly the supervised ones, for each example: what greedy decoding gives."""
    right = [False] * len(examples)
    for chosen, labels, logits in _predictions(model, examples):
        matched = ((logits.argmax(-1) == labels) | (labels == IGNORED)).all(1).tolist()
        for i, match in zip(chosen, matched, strict=True):
            right[i] = match
    return right


@torch.no_grad()
def log_probabilities(model: nn.Module, examples: Sequence[Example]) -> list[float]:
    """The log probability of all supervised tokens together, for each example."""
    found = [0.0] * len(examples)
    for chosen, labels, logits in _predictions(model, examples):
        losses = F.cross_entropy(logits.transpose(1, 2).float(), labels, ignore_index=IGNORED, reduction="none")
        for i, total in zip(chosen, losses.sum(1, dtype=torch.float64).tolist(), strict=True):
            found[i] = -total
    return found


def _predictions(model: nn.Module, examples: Sequence[Example]) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Example numbers, labels (B, T) and the logits that predict them (B, T, V), batch by batch."""
    model.eval()
    device = next(model.parameters()).device
    for chosen, ids, labels in _batches(examples, 64, None):
        yield chosen, labels.to(device), model(input_ids=ids.to(device)).logits[:, :-1]


def _batches(
    examples: Sequence[Example], size: int, rng: random.Random | None, task: Task = NEXT_TOKENS
) -> list[tuple[list[int], Tensor, Tensor]]:
    """Example numbers, padded tokens and labels. Examples of like length share a batch, in random order.

    Padding comes last, where a causal model never looks back at it, so no mask is needed; its id is the padding
    token's, by which a classifier's head finds the end.
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
        chosen = [examples[i] for i in group]
        length = max(len(tokens) for tokens, _ in chosen)
        ids = torch.zeros(len(group), length, dtype=torch.long)
        for row, (tokens, _) in enumerate(chosen):
            ids[row, : len(tokens)] = torch.tensor(tokens)
        batches.append((group, ids, task.labels(chosen, length)))
    return batches


def train(
    model: GPTNeoXPreTrainedModel,
    examples: Sequence[Example],
    schedule: Schedule,
    seed: int | str,
    name: str | None,
    task: Task = NEXT_TOKENS,
    left_out: Collection[int] = (),
    after_step: Callable[[Trained], None] | None = None,
) -> Trained:
    """Trains the model in place.

    Examples that are left out are missing from the very batches that they would have been in: the order of all
    others, the number of steps and the learning rates stay as they are, and so does what a batch's summed loss is
    divided by. It is the objective Σ w L with weight 0 for some, so two trainings differ by these examples alone.
    A batch with nothing left takes no step.

    Args:
        seed: of the batches and their order.
        name: what the progress bar says; None shows none.
        left_out: numbers of examples.
        after_step: is called after every step.
    """
    rng, gone, device = random.Random(seed), set(left_out), next(model.parameters()).device
    steps = schedule.epochs * math.ceil(len(examples) / schedule.batch_size)
    optimizer = torch.optim.AdamW(_groups(model, schedule.weight_decay), lr=schedule.learning_rate, fused=True)
    trained = Trained(model, optimizer, schedule, steps)
    batches = (b for _ in range(schedule.epochs) for b in _batches(examples, schedule.batch_size, rng, task))
    model.train()
    with tqdm(batches, total=steps, desc=name, unit="step", disable=name is None) as bar:
        for step, (group, ids, labels) in enumerate(bar, 1):
            kept = [row for row, i in enumerate(group) if i not in gone]
            if not kept:
                continue
            rate = _learning_rate(schedule, step - 1, steps)
            for parameters in optimizer.param_groups:
                parameters["lr"] = rate
            share = (labels[kept] != IGNORED).sum().item() / (labels != IGNORED).sum().item()
            ids, labels = ids[kept].to(device), labels[kept].to(device)
            supervised = labels != IGNORED
            logits = task.logits(model, ids)
            loss = F.cross_entropy(logits[supervised], labels[supervised]) * share
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), schedule.clip)
            optimizer.step()
            trained.log.append(
                {
                    "epoch": step * schedule.epochs / steps,
                    "step": step,
                    "learning_rate": rate,
                    "loss": loss.item(),
                    "grad_norm": norm.item(),
                }
            )
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
            if after_step is not None:
                after_step(trained)
    model.eval()
    return trained


def _learning_rate(schedule: Schedule, step: int, steps: int) -> float:
    warmup = max(1, round(schedule.warmup * steps))
    if step < warmup:
        return schedule.learning_rate * (step + 1) / warmup
    return schedule.learning_rate * (steps - step) / max(1, steps - warmup)


def _groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """The Trainer's two groups of what is trained, in its order: with weight decay, then without."""
    decayed = set(get_parameter_names(model, [nn.LayerNorm], NO_DECAY))
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for name, parameter in named if name in decayed], "weight_decay": weight_decay},
        {"params": [parameter for name, parameter in named if name not in decayed], "weight_decay": 0.0},
    ]
