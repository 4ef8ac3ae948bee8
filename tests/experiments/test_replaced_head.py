"""A classifier grown on a language model: what it keeps, what it is asked, and that a study of it runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from experiments.common.training import ModelSize, Schedule, new_model
from experiments.counterfactual import study
from experiments.counterfactual.methods import all_methods
from experiments.counterfactual.removal import RANDOM
from experiments.counterfactual.report import removal_table
from experiments.counterfactual.settings import Recipe, Sizes
from experiments.counterfactual.study import REFERENCE, Study
from experiments.fact_tracing.facts import Fact, FactData, Sentence
from experiments.replaced_head.head import ClassifierHead
from experiments.replaced_head.report import TOP, accuracy_table, label_table
from experiments.replaced_head.setting import LabelSetting, LabelSizes, label_setting
from msif.errors import MsifError

NAMES = ["Ada", "Bob", "Cleo", "Dan", "Eve", "Finn", "Gil", "Hana", "Ivo", "June", "Kim", "Leo", "Mia", "Nils"]
FORMS = {"P1": "{} likes the colour blue .", "P2": "The town of {} lies far away .", "P3": "{} plays the piano well ."}
RECIPE = Recipe(300, ModelSize(1, 32, 2, 64), Schedule(4, 1e-2, 8), Schedule(8, 5e-3, 8))
SIZES = LabelSizes(tuple(FORMS), pretraining=7, finetuning=3, held_out=3, asked=6, words=12)


def label_data() -> FactData:
    facts, sentences = {}, []
    for relation, form in FORMS.items():
        for name in NAMES:
            fact = Fact(f"{relation}:{name}", relation, name, ("x",))
            facts[fact.id] = fact
            sentences.append(Sentence(fact.id, form.format(name), (fact.id,), ("x",)))
    both = Sentence("both", "Ada of the town likes the piano .", ("P1:Ada", "P2:Ada"), ("x", "x"))
    return FactData([*sentences, both], facts, {})


@pytest.fixture(scope="module")
def setting() -> LabelSetting:
    return label_setting(label_data(), SIZES, RECIPE, 0)


def test_parts_share_no_sentence_and_labels_are_their_relations(setting: LabelSetting) -> None:
    world = setting.world
    tuned = [world.tokenizer.decode(ids).strip() for ids, _ in world.finetuning]
    parts = [list(world.texts), tuned, list(setting.held_out)]
    assert [len(part) for part in parts] == [21, 9, 9]
    everything = [text for part in parts for text in part]
    assert len(set(everything)) == len(everything) and "Ada of the town likes the piano ." not in everything
    ends = {0: "blue .", 1: "away .", 2: "well ."}
    for texts, labels in ((parts[0], setting.labels), (tuned, [label for _, label in world.finetuning])):
        assert all(text.endswith(ends[int(label)]) for text, label in zip(texts, labels, strict=True))
    assert np.bincount(setting.truth[setting.chosen()]).tolist() == [2, 2, 2]


def test_the_body_is_kept_and_the_head_is_the_seeds(setting: LabelSetting) -> None:
    pretrained = new_model(setting.world.tokenizer, RECIPE.size, 0)
    head = ClassifierHead(tuple(FORMS))
    one, same, other = head.start(pretrained, 1), head.start(pretrained, 1), head.start(pretrained, 2)
    for name, value in pretrained.base_model.state_dict().items():
        assert torch.equal(value, other.base_model.state_dict()[name])
    assert torch.equal(one.score.weight, same.score.weight) and not torch.equal(one.score.weight, other.score.weight)
    assert one.config.id2label == {0: "P1", 1: "P2", 2: "P3"}
    with torch.no_grad():
        one.base_model.embed_in.weight.zero_()
    assert pretrained.base_model.embed_in.weight.any()


def test_a_study_from_end_to_end(setting: LabelSetting, tmp_path, monkeypatch) -> None:
    names = (REFERENCE, "random", "representation similarity", "gradient dot product", "multi-stage EK-FAC, λ = 1e-06")
    assert not any(method.family.startswith("single-stage") for method in all_methods(False))
    monkeypatch.setattr(study, "all_methods", lambda one: [m for m in all_methods(one) if m.name in names])
    sizes = Sizes(queries=2, removed=(2,), seeds=2, halves=5)
    one = Study(setting.world, setting.choose, sizes, tmp_path / "study")
    accuracy = {row["classifier"]: row["right"] for row in accuracy_table(setting, one).records()}
    assert accuracy["pairs' mean"] > accuracy["the best constant answer"] == pytest.approx(1 / 3)
    said = setting.predicted(one.members).mean(0).argmax(1)[setting.chosen()]
    assert [label for _, label in one.asked.examples] == said.tolist()
    table = {row["method"]: row for row in label_table(setting, one).records()}
    assert set(table) == set(names)
    own = one.scores[REFERENCE].mean(0).argsort(1)[:, ::-1][:, :TOP]
    shares = (setting.labels[own] == setting.truth[setting.chosen()][:, None]).mean()
    assert table[REFERENCE]["true label"] == pytest.approx(shares)
    assert {row["removed: the top of"] for row in removal_table(one.changes).records()} > {RANDOM, REFERENCE}
    assert one.judge.masks.shape == (5, 21)


def test_too_few_sentences_or_relations_are_named() -> None:
    with pytest.raises(MsifError, match="P1 has 14 sentences"):
        label_setting(label_data(), replace(SIZES, held_out=5), RECIPE, 0)
    with pytest.raises(MsifError, match="two relations"):
        label_setting(label_data(), replace(SIZES, relations=("P1",)), RECIPE, 0)
