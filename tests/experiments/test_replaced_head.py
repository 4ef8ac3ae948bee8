"""A classifier grown on a language model: its tasks, what it keeps, what it is asked, and that a study of it runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from experiments.common.training import ModelSize, Schedule, new_model
from experiments.facts.facts import Fact, FactData, Sentence
from experiments.replaced_head.head import ClassifierHead
from experiments.replaced_head.relations import RelationTask
from experiments.replaced_head.report import TOP, accuracy_table, label_table
from experiments.replaced_head.setting import LabelSetting, Parts, label_setting
from experiments.replaced_head.subjects import SubjectTask
from experiments.retraining.methods import SOLVED, all_methods
from experiments.retraining.removal import RANDOM
from experiments.retraining.report import removal_table
from experiments.retraining.settings import Recipe, Sizes
from experiments.retraining.study import REFERENCE, Study
from msif.errors import MsifError

NAMES = ["Ada", "Bob", "Cleo", "Dan", "Eve", "Finn", "Gil", "Hana", "Ivo", "June", "Kim", "Leo", "Mia", "Nils"]
FORMS = {"P1": "{} likes the colour blue .", "P2": "The town of {} lies far away .", "P3": "{} plays the piano well ."}
RECIPE = Recipe(300, ModelSize(1, 32, 2, 64), Schedule(4, 1e-2, 8), Schedule(8, 5e-3, 8))
RELATION = RelationTask(tuple(FORMS), pretraining=7, finetuning=3, held_out=3, words=12)


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
    return label_setting(RELATION.parts(label_data(), 0), RECIPE)


def subject_data() -> FactData:
    """Fourteen names, of which seven are of a language and seven of a label, each in three sentences; and oddities."""
    sentences, facts = [], {}

    def state(id: str, subject: str, answer: str, texts: list[str]) -> None:
        facts[id] = Fact(id, id.split(":")[0], subject, (answer,))
        sentences.extend(Sentence(f"{id}:{n}", text, (id,), (answer,)) for n, text in enumerate(texts))

    for number, name in enumerate(NAMES):
        relation, answer = (("P1", "French"), ("P2", "Motown"))[number % 2]
        state(f"{relation}:{name}", name, answer, [f"{name} {verb} {answer} ." for verb in ("has", "likes", "is")])
    state("P1:Olga", "Olga", "Dutch", ["Olga is Dutch .", "Olga likes Dutch ."])  # a class of one
    state("P1:Pia", "Pia", "French", ["Pia is French .", "Pia likes French ."])  # of two classes
    state("P2:Pia", "Pia", "Motown", ["Pia sings for Motown .", "Pia likes Motown ."])
    both = Sentence("both", "Ada is French , Bob likes Motown .", ("P1:Ada", "P2:Bob"), ("French", "Motown"))
    return FactData([*sentences, both], facts, {})


LEARNING = replace(RECIPE, pretraining=Schedule(16, 1e-2, 8), finetuning=Schedule(8, 1e-2, 8))
SUBJECT = SubjectTask(("P1", "P2"), least=3, most=6, sentences=2, words=12, lead=1, stated=2)


def test_parts_share_no_sentence_and_labels_are_their_relations(setting: LabelSetting) -> None:
    world, parts = setting.world, setting.parts
    tuned = [world.tokenizer.decode(ids).strip() for ids, _ in world.finetuning]
    texts = [list(world.texts), tuned, [text for text, _ in parts.held_out]]
    assert [len(part) for part in texts] == [21, 9, 9]
    everything = [text for part in texts for text in part]
    assert len(set(everything)) == len(everything) and "Ada of the town likes the piano ." not in everything
    ends = {0: "blue .", 1: "away .", 2: "well ."}
    assert all(text.endswith(ends[label]) for part in (parts.documents, parts.finetuning) for text, label in part)
    assert parts.sources == [()] * 9 and len(parts.data.sentences) == 39
    assert parts.data.report["sentences left out for two relations"] == 1
    assert parts.data.report["sentences left out for size"] == 42 - 39


def test_subjects_are_of_one_class_and_their_sentences_are_all_in_pretraining() -> None:
    parts = SUBJECT.parts(subject_data(), 0)
    assert parts.classes == ("French", "Motown")
    assert parts.data.report["sentences left out for telling of two classes"] == 5
    assert [len(part) for part in (parts.documents, parts.finetuning, parts.held_out)] == [24, 6, 6]
    subjects = [name for name, _ in (*parts.finetuning, *parts.held_out)]
    assert len(set(subjects)) == 12 and set(subjects) < set(NAMES)
    assert all(NAMES.index(name) % 2 == label for name, label in (*parts.finetuning, *parts.held_out))
    assert all(parts.classes[label] in text for text, label in parts.documents) and "both" not in parts.documents
    for (name, label), rows in zip(parts.held_out, parts.sources, strict=True):
        assert len(rows) == 2
        assert all(parts.documents[row][0].startswith(name) and parts.documents[row][1] == label for row in rows)


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


def test_queries_are_of_each_class_in_turn_and_explain_what_the_pairs_say() -> None:
    """Four held out, of which pairs are sure as written here."""
    held_out = [("a", 1), ("b", 1), ("c", 0), ("d", 0)]
    parts = Parts(("x", "y"), [("a", 0), ("b", 1)], [("c", 0)], held_out, [()] * 4, label_data())
    small = label_setting(parts, RECIPE)
    first = [[0.6, 0.4], [0.1, 0.9], [0.05, 0.95], [0.7, 0.3]]
    second = [[0.6, 0.4], [0.3, 0.7], [0.05, 0.95], [0.4, 0.6]]
    losses = -np.log(np.array([first, second]).reshape(2, 8))
    assert small.order().tolist() == [2, 0, 3, 1]
    assert np.allclose(small.predicted(losses)[1], second)
    asked = small.world.questions.chosen(small.choose(losses))
    assert asked.texts == ["c", "a", "d", "b"] and asked.answers == ["y, wrongly: x", "x, wrongly: y", "x", "y"]
    assert [label for _, label in asked.examples] == [1, 0, 0, 1] and asked.titles[0] == "held out 2"


def test_a_study_from_end_to_end(tmp_path) -> None:
    names = (REFERENCE, "random", "representation similarity", "gradient dot product", "multi-stage EK-FAC, λ = 1e-06")
    families = {method.family for method in all_methods(False)}
    assert SOLVED in families and not any(family.startswith("single-stage") for family in families)
    kept = lambda one_objective: [m for m in all_methods(one_objective) if m.name in names]  # noqa: E731
    setting = label_setting(SUBJECT.parts(subject_data(), 0), LEARNING)
    sizes = Sizes(queries=2, solved=2, removed=(2,), seeds=2, halves=8, orders=1)
    one = Study(setting.world, setting.choose, sizes, tmp_path / "study", listed=kept)
    accuracy = {row["classifier"]: row["right"] for row in accuracy_table(setting, one).records()}
    assert accuracy["the best constant answer"] == 0.5 and accuracy["one pair"] > 0.5
    places = setting.order()
    table = {row["method"]: row for row in label_table(setting, one).records()}
    assert set(table) == set(names)
    first = one.scores[REFERENCE].mean(0).argsort(1)[:, ::-1][:, :TOP]
    shares = (setting.labels[first] == setting.truth[places][:, None]).mean()
    assert table[REFERENCE]["true label"] == pytest.approx(shares)
    found = [len({*rows} & {*setting.parts.sources[place]}) / 2 for rows, place in zip(first, places, strict=True)]
    assert table[REFERENCE]["sources found"] == pytest.approx(np.mean(found))
    assert {row["removed: the top of"] for row in removal_table(one.changes).records()} > {RANDOM, REFERENCE}
    assert one.judge.masks.shape == (8, 24)


def test_too_few_sentences_or_classes_are_named(setting: LabelSetting) -> None:
    with pytest.raises(MsifError, match="P1 has 14 sentences"):
        replace(RELATION, held_out=5).parts(label_data(), 0)
    lone = Parts(("P1",), [("a", 0)], [("b", 0)], [("c", 0)], [()], label_data())
    with pytest.raises(MsifError, match="two classes or more, and this one has 1"):
        label_setting(lone, RECIPE)
