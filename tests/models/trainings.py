"""What a Trainer leaves beside a model, and steps to leave it of."""

import json

import torch
from helpers import documents
from transformers import Trainer

from msif.data.documents import collate
from msif.models.objectives import CausalLM


def leave(folder, optimizer=None, logged=(), steps=0, planned=0, scheduler=None, **more):
    """The Trainer's files: rates by step among evaluations and a summary; states as they are, or of what has one."""
    folder.mkdir(exist_ok=True)
    entries = [{"step": step, "learning_rate": rate, "loss": 1.0, "epoch": 0.5} for step, rate in dict(logged).items()]
    rest = [{"step": 7, "eval_loss": 2.0}, {"step": steps, "train_runtime": 3.0}]
    state = {"log_history": [*entries, *rest], "global_step": steps, "max_steps": planned, **more}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    for name, left in (("optimizer.pt", optimizer), ("scheduler.pt", scheduler)):
        if left is not None:
            torch.save(left if isinstance(left, dict) else left.state_dict(), folder / name)
    return folder


def trained(model, optimizer, steps=3):
    """A few real steps."""
    batch = collate(documents([6, 5, 7]))
    for _ in range(steps):
        optimizer.zero_grad()
        CausalLM().losses(CausalLM().outputs(model, batch), batch).sum().backward()
        optimizer.step()
    return optimizer


def as_the_trainer_groups(model, **options):
    """The parameter groups of `Trainer.create_optimizer`, by the installed version's own rule."""
    decayed = Trainer.get_decay_parameter_names(None, model)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return [
        {"params": [p for name, p in named if name in decayed], "weight_decay": 0.1, **options},
        {"params": [p for name, p in named if name not in decayed], "weight_decay": 0.0, **options},
    ]
