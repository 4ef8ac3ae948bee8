"""Scores by Bergson: python -m experiments.peers.adapters.bergson FOLDER, in its environment.

Its own command line is called, in this process, and the scores are read from the store that it writes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from bergson.__main__ import main
from bergson.data import load_scores_loss_signed
from transformers import AutoModelForCausalLM

from experiments.peers.adapters.serving import Score, Scored, serve
from experiments.peers.exchange import Request, Row

COMMON = ("--token_batch_size", "128", "--nproc_per_node", "1")
"""It refuses batches of more tokens than the model has positions."""


def prepare(request: Request, documents: list[Row], queries: list[Row]) -> Score:
    def score(options: Mapping[str, Any], work: Path) -> Scored:
        """Options: a "command" of it and its "flags", among which are the names in ``PLACES``."""
        torch.manual_seed(0)
        flags = ["--model", request.model, *COMMON]
        for name, rows in (("data", documents), ("query", queries)):
            flags += [f"--{name}.dataset", _dataset(work / f"{name}.jsonl", rows)]
        for flag in options["flags"]:
            flags += PLACES[flag](Path(request.model), work) if flag in PLACES else [flag]
        sys.argv = ["bergson", options["command"], str(work / "run"), *flags]
        main()
        # its SOURCE has scores of the other sign than its other methods; this reads the store's own note of it
        changes, _ = load_scores_loss_signed(str(work / "run" / "scores"))
        return Scored(-changes.double().numpy().reshape(len(documents), len(queries)).T)

    return score


def _dataset(path: Path, rows: list[Row]) -> str:
    """With token ids, which it takes instead of tokenizing."""
    lines = [json.dumps({"input_ids": row.input_ids, "labels": row.labels}) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")
    return str(path)


def _checkpoints(model: Path, work: Path) -> list[str]:
    """All of the training, under names that end in their steps."""
    last = work / f"checkpoint-{json.loads((model / 'trainer_state.json').read_text())['global_step']}"
    last.symlink_to(model, target_is_directory=True)
    steps = sorted(int(path.name.split("-")[1]) for path in model.glob("checkpoint-*") if path.name[11:].isdigit())
    return [*(str(model / f"checkpoint-{step}") for step in steps), str(last)]


def _one_group(model: Path, work: Path) -> list[str]:
    """Adam's moments with all parameters in one group, in the model's order.

    It cannot map the two groups of weight decay to parameters, because it has frozen the model before it counts them.
    """
    state = torch.load(model / "optimizer.pt", weights_only=True)
    names = _names_by_group(model, [len(group["params"]) for group in state["param_groups"]])
    order = [name for name, _ in AutoModelForCausalLM.from_pretrained(model).named_parameters()]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    indices = dict(zip(names, numbers, strict=True))
    state["state"] = {place: state["state"][indices[name]] for place, name in enumerate(order)}
    state["param_groups"] = [{**state["param_groups"][0], "params": list(range(len(order)))}]
    torch.save(state, work / "optimizer.pt")
    return [str(work / "optimizer.pt")]


def _names_by_group(model: Path, sizes: list[int]) -> list[str]:
    """As a Trainer of transformers orders them: with weight decay, which are matrices here, then without."""
    named = list(AutoModelForCausalLM.from_pretrained(model).named_parameters())
    groups = [[name for name, p in named if (p.ndim > 1) == decayed] for decayed in (True, False)]
    if [len(group) for group in groups] != sizes:
        raise ValueError(f"optimizer.pt has groups of {sizes} parameters, the model {[len(g) for g in groups]}.")
    return groups[0] + groups[1]


PLACES = {
    "{checkpoints}": _checkpoints,
    "{moments}": _one_group,
    "{model}": lambda model, _: [str(model)],
}
"""What stands for paths in flags."""


if __name__ == "__main__":
    serve(prepare)
