"""Make the demo's world and train its model pair: `python -m experiments.demo.train --output results/demo`.

The output holds `world/` (the data), `pretrained/` and `finetuned/` (folders of `transformers`, with the files
`trainer_state.json` and `optimizer.pt`), and `accuracy.json`. Each folder is finished under another name and then
renamed, and carries the settings that it was made from in `settings.json`; a second run with the same settings
keeps it.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from experiments.common.cache import Step, built_all, reported
from experiments.common.running import quiet
from experiments.demo.world import Fact, World, WorldSize, build_world, write_world
from msif.cli.parsing import run

MODEL = {"layers": 3, "hidden": 192, "heads": 6}
VOCABULARY = 2048  # at most: a merge needs two occurrences
PRETRAINING = {"epochs": 13, "learning_rate": 2e-3, "batch_size": 32, "weight_decay": 0.1}
FINETUNING = {"epochs": 20, "learning_rate": 2e-4, "batch_size": 16, "weight_decay": 0.01}


def make(output: str | Path, seed: int = 0, overwrite: bool = False) -> dict:
    """Build what is missing under `output`; returns the report that `accuracy.json` holds."""
    output = Path(output)
    world = build_world(seed, WorldSize())
    settings = {"seed": seed, "size": asdict(WorldSize()), "passages": _fingerprint(world)}
    plan: list[Step] = [(output / "world", settings, lambda folder: write_world(world, folder))]
    settings = {**settings, "model": {**MODEL, "vocabulary": VOCABULARY}, "pretraining": PRETRAINING}
    plan.append((output / "pretrained", settings, lambda folder: _pretrain(world, seed, folder)))
    settings = {**settings, "finetuning": FINETUNING}
    plan.append((output / "finetuned", settings, lambda folder: _finetune(world, seed, output / "pretrained", folder)))
    built_all(plan, overwrite)
    # asked again only if the fine-tuned model is new
    return reported(output / "accuracy.json", settings, lambda: _report(world, output / "finetuned"))


def _fingerprint(world: World) -> str:
    return hashlib.sha256(repr(world).encode()).hexdigest()[:16]


def _pretrain(world: World, seed: int, folder: Path) -> None:
    from experiments.common import training  # slow to import

    texts = [passage.text for passage in world.passages]
    questions = [fact.prompt + fact.completion for fact in world.half("finetune")]
    tokenizer = training.build_tokenizer(texts + questions, VOCABULARY)
    model = training.new_model(tokenizer, training.ModelSize(**MODEL), seed)
    schedule = training.Schedule(**PRETRAINING)
    trained = training.train(model, training.plain_text(tokenizer, texts), schedule, seed, "pre-training")
    trained.save(folder, tokenizer)


def _finetune(world: World, seed: int, pretrained: Path, folder: Path) -> None:
    from experiments.common import training

    model, tokenizer = training.load(pretrained)
    examples = [training.completion(tokenizer, fact.prompt, fact.completion) for fact in world.half("finetune")]
    training.train(model, examples, training.Schedule(**FINETUNING), seed, "fine-tuning").save(folder, tokenizer)


def accuracy(folder: Path, facts: list[Fact]) -> dict[str, bool]:
    """Whether greedy decoding answers each fact's question with exactly the true completion, and then stops."""
    from experiments.common import training

    model, tokenizer = training.load(folder)
    examples = [training.completion(tokenizer, fact.prompt, fact.completion) for fact in facts]
    return dict(zip([fact.id for fact in facts], training.exact_matches(model, examples), strict=True))


def chance(facts: list[Fact]) -> float:
    """The share that the best constant answer of each relation gets right."""
    right = 0
    for relation in {fact.relation for fact in facts}:
        answers = [fact.answer for fact in facts if fact.relation == relation]
        right += max(answers.count(answer) for answer in answers)
    return right / len(facts)


def _report(world: World, folder: Path) -> dict:
    """How many questions the fine-tuned model answers."""
    right = accuracy(folder, world.facts)
    finetuned, asked = world.half("finetune"), world.half("query")
    return {
        "finetuned_half": _share(right, finetuned),
        "other_half": _share(right, asked),
        "other_half_by_relation": {
            relation: _share(right, [fact for fact in asked if fact.relation == relation])
            for relation in sorted({fact.relation for fact in asked})
        },
        "chance": chance(asked),
    }


def _share(right: dict[str, bool], facts: list[Fact]) -> float:
    return sum(right[fact.id] for fact in facts) / len(facts)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.demo.train", description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="results/demo", help="folder to fill (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="decides the world, the first weights and the batches")
    parser.add_argument(
        "--threads", type=int, default=1, help="CPU threads (default: 1; so small a model gains little)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace folders that have other settings")
    options = parser.parse_args(arguments)
    wall, cpu = time.perf_counter(), time.process_time()
    quiet(options.threads)
    report = make(options.output, options.seed, options.overwrite)
    print(f"{options.output}: {time.perf_counter() - wall:.0f} s, {time.process_time() - cpu:.0f} s of CPU time")
    print(
        f"questions answered right: {report['finetuned_half']:.0%} of those fine-tuned on, {report['other_half']:.0%} "
        f"of the other half (the best constant answers: {report['chance']:.0%})"
    )


if __name__ == "__main__":
    run(main)
