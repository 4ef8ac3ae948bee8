"""Smaller models, and shorter trainings, on the same sentences and tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from experiments.common import training
from experiments.common.cache import built, hashed
from experiments.trackstar.world import World

SCHEDULE = training.Schedule(epochs=30, learning_rate=2e-3, batch_size=32, weight_decay=0.1)
"""As the pair was pre-trained."""
SMALL = training.ModelSize(layers=2, hidden=96, heads=4)
SIZES = tuple((f"{SMALL.layers} layers of {SMALL.hidden}", SMALL, epochs) for epochs in (3, 10, 30))
"""(name, size, epochs)."""


def trained(world: World, size: training.ModelSize, epochs: int, folder: Path, seed: int) -> Path:
    """The folder of a model that was pre-trained on the world's sentences with the pair's tokenizer."""
    schedule = replace(SCHEDULE, epochs=epochs)
    settings = {"size": vars(size), "schedule": vars(schedule), "seed": seed, "texts": hashed(list(world.texts))}

    def build(part: Path) -> None:
        _, tokenizer = training.load(world.folder / "pretrained")
        model = training.new_model(tokenizer, size, seed)
        examples = training.plain_text(tokenizer, world.texts)
        training.train(model, examples, schedule, seed, f"{size.layers} × {size.hidden}").save(part, tokenizer)

    return built(folder / f"{size.layers}x{size.hidden}-{epochs}", settings, build)
