"""Tail-patch: what one more training step on a document does to the probability of an answer.

Chang et al. 2024 (arXiv 2410.17413, section 4): a proponent is worth what a step on it, from the trained model and with
its own optimizer, adds to the target's probability. A proxy of retraining that asks for one step a document; what it
cannot see is that a document was learned long ago.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from msif.curvature.inputs import device_and_dtype
from msif.errors import MsifError
from msif.models.capture import frozen
from msif.models.objectives import Objective
from msif.models.training.files import optimizer_state
from msif.models.training.saved import SavedOptimizer
from msif.progress import progress

MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]
"""The optimizer of a model's parameters, with its state: called anew for each document."""


@dataclass(frozen=True)
class TailPatches:
    """
    Attributes:
        before: probabilities of the queries' answers, float64, (Q,).
        changes: of each query what a step on each of its documents adds to it, float64, in the order of the documents.
    """

    before: np.ndarray
    changes: Sequence[np.ndarray]

    def mean(self, first: int | None = None) -> np.ndarray:
        """Each query's mean over its first documents, (Q,); over all of them where nothing is said."""
        return np.array([changes[:first].mean() for changes in self.changes])


def tail_patch(
    model: nn.Module,
    objective: Objective,
    make_optimizer: MakeOptimizer,
    queries: Sequence[Any],
    documents: Mapping[int, Any],
    chosen: Sequence[Sequence[int]],
    *,
    reduction: str = "mean",
) -> TailPatches:
    """Steps on the documents that were chosen for each query, one at a time, each from the model as it is given.

    A step on a document serves all queries that chose it. Dropout is off. The model comes back as it was, bit for bit,
    also after an exception.

    Args:
        queries: batches of one query each.
        documents: row number -> a batch of this document alone.
        chosen: for each query row numbers, best first.
        reduction: "mean" of a document's losses over its tokens, as a ``Trainer`` takes it, or their "sum".

    Raises:
        MsifError: a query without a document, a document that is not there, or an unknown reduction.
    """
    if reduction not in ("mean", "sum"):
        raise MsifError(f"reduction is {reduction!r}: choose 'mean' or 'sum'.")
    if len(chosen) != len(queries) or not all(len(rows) for rows in chosen):
        raise MsifError("a tail-patch needs one document or more for each query: leave queries without any out.")
    missing = sorted({row for rows in chosen for row in rows} - set(documents))
    if missing:
        raise MsifError(f"document {missing[0]} is chosen and not given: give a batch of it.")
    before = np.array([_probability(model, objective, query) for query in queries])
    changes = [np.zeros(len(rows)) for rows in chosen]
    wanted: dict[int, list[tuple[int, int]]] = {}
    for query, rows in enumerate(chosen):
        for place, row in enumerate(rows):
            wanted.setdefault(row, []).append((query, place))
    for row, asked in progress(sorted(wanted.items()), desc="tail-patch", unit="doc"):
        with _stepped(model, objective, make_optimizer, documents[row], reduction):
            after = {query: _probability(model, objective, queries[query]) for query in {query for query, _ in asked}}
        for query, place in asked:
            changes[query][place] = after[query] - before[query]
    return TailPatches(before, changes)


@contextmanager
def _stepped(
    model: nn.Module, objective: Objective, make_optimizer: MakeOptimizer, document: Any, reduction: str
) -> Iterator[None]:
    """The model after one step on a document inside; the very same numbers as before after."""
    kept = {name: tensor.detach().clone() for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    try:
        with frozen(model):
            for parameter in model.parameters():
                parameter.requires_grad_(True)
                parameter.grad = None
            document = document.to(device_and_dtype(model)[0])
            loss = objective.losses(objective.outputs(model, document), document).sum()
            if reduction == "mean":
                loss = loss / objective.supervised_counts(document).sum()
            loss.backward()
            make_optimizer(model).step()
        yield
    finally:
        with torch.no_grad():
            for name, tensor in (*model.named_parameters(), *model.named_buffers()):
                tensor.copy_(kept[name])
        for name, parameter in model.named_parameters():
            parameter.grad = grads[name]


def _probability(model: nn.Module, objective: Objective, query: Any) -> float:
    """Of the answer as a whole: exp(−Σ loss)."""
    query = query.to(device_and_dtype(model)[0])
    with frozen(model), torch.no_grad():
        losses: Tensor = objective.losses(objective.outputs(model, query).double(), query)
    return float(torch.exp(-losses).squeeze())


def sgd(learning_rate: float) -> MakeOptimizer:
    """Plain steps of this size."""
    return lambda model: torch.optim.SGD(model.parameters(), lr=learning_rate)


def saved_optimizer(folder: str | Path, model: nn.Module, learning_rate: float | None = None) -> MakeOptimizer:
    """The optimizer that a Trainer left beside a model, with its moments: Adam, AdamW, Adafactor or SGD.

    Weight decay is left out: it is the same for every document.

    Args:
        learning_rate: of the step; the last one of the training where nothing is said, or its largest where that ended
            at zero.

    Raises:
        MsifError: there is none, it does not fit the model, or steps of its kind are not known here.
    """
    folder = Path(folder).expanduser()
    state = optimizer_state(folder)
    if state is None:
        raise MsifError(f"there is no optimizer.pt in {folder}: give the folder of a checkpoint.")
    saved = SavedOptimizer(folder, state, model)
    places = saved.matched(list(saved.names.values()))
    by_number = {place.number: name for name, place in places.items() if place is not None}
    groups, names, order = [], [], list[Any]()
    for group in state["param_groups"]:
        first, stop = len(order), len(order) + len(group["params"])
        order += group["params"]
        names.append([by_number[number] for number in group["params"]])
        changes = {"lr": _rate(group, learning_rate), "weight_decay": 0.0, "params": list(range(first, stop))}
        groups.append({**group, **changes})
    kind = _kind(groups[0], list(saved.entries.values()))

    def make(model: nn.Module) -> torch.optim.Optimizer:
        parameters = dict(model.named_parameters())
        optimizer = kind([{"params": [parameters[name] for name in own]} for own in names])
        entries = {place: _copied(state["state"][n]) for place, n in enumerate(order) if n in state["state"]}
        optimizer.load_state_dict({"state": entries, "param_groups": groups})
        return optimizer

    return make


def _copied(entry: Mapping[str, Any]) -> dict[str, Any]:
    """So that a step does not change what the next one starts from."""
    return {key: value.clone() if isinstance(value, Tensor) else value for key, value in entry.items()}


def _rate(group: Mapping[str, Any], given: float | None) -> float:
    return given or float(group["lr"]) or float(group.get("initial_lr", 0.0))


def _kind(group: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> Callable[[Any], torch.optim.Optimizer]:
    kept = set().union(*entries)
    if {"row_var", "variance"} & kept:
        return lambda own: torch.optim.Adafactor(own)
    if {"exp_avg_sq_row"} & kept:
        from transformers.optimization import Adafactor

        return lambda own: Adafactor(own, lr=1.0, relative_step=False, scale_parameter=False)
    if "exp_avg_sq" in kept and "betas" in group:
        return lambda own: torch.optim.AdamW(own)
    if not kept - {"momentum_buffer"}:
        return lambda own: torch.optim.SGD(own, lr=1.0)
    raise MsifError(f"steps of an optimizer that keeps {', '.join(sorted(kept))} are not known: use sgd(rate).")
