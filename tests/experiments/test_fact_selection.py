"""Which facts and sentences are kept: restricted in size, plainly stated, balanced, divisible, with a question."""

from collections import Counter

import pytest

from experiments.facts.facts import Fact, FactData, Sentence
from experiments.facts.selection import Plain, balanced, divisible, plainly_stated, with_question
from msif.errors import MsifError


def made(count=6, sentences=3):
    """P1 and P2 about the same subjects; each sentence but a fact's first states the P2 fact of the subject, too."""
    facts, rows = {}, []
    for i in range(count):
        for relation in ("P1", "P2"):
            id = f"{relation}:Q{i}"
            facts[id] = Fact(id, relation, f"S{i}", (f"o{i}",))
        for j in range(sentences):
            both = (f"P1:Q{i}", f"P2:Q{i}")
            ids = both[:1] if j == 0 else both
            rows.append(Sentence(f"s{len(rows)}", f"S{i} number {j} is o{i}.", ids, (f"o{i}",) * len(ids)))
    return FactData(rows, facts, {"old": 7})


def test_a_restricted_set_keeps_its_facts_whole_and_counts_the_rest():
    data = made()
    small = data.restricted(["P1"], facts_per_relation=2, sentences_per_fact=2, seed=3)
    assert len(small.facts) == 2 and {fact.relation for fact in small.facts.values()} == {"P1"}
    assert all(len(small.sources(id)) == 2 for id in small.facts)
    assert all(set(sentence.facts) <= set(small.facts) for sentence in small.sentences)
    of_p2 = sum(" number 0 " not in sentence.text for sentence in small.sentences)
    assert small.report == {
        "old": 7,
        "facts left out for size": 10,
        "sentences left out for size": 14,
        "statements of left facts in kept sentences, for size": of_p2,
    }


def test_a_kept_sentence_that_states_two_kept_facts_is_a_source_of_both():
    small = made().restricted(None, None, 1, seed=0)
    texts = {sentence.text: sentence for sentence in made().sentences}
    for row, sentence in enumerate(small.sentences):
        assert sentence.facts == texts[sentence.text].facts
        assert all(row in small.sources(id) for id in sentence.facts)
    assert small.report["statements of left facts in kept sentences, for size"] == 0


def test_restriction_is_seeded_and_nested():
    data = made()
    assert data.restricted(None, 3, 2, 5).sentences == data.restricted(None, 3, 2, 5).sentences
    assert len({tuple(data.restricted(None, 3, 2, seed).facts) for seed in range(5)}) > 1
    assert set(data.restricted(None, 2, None, 1).facts) < set(data.restricted(None, 4, None, 1).facts)
    assert data.restricted().sentences == data.sentences


def test_an_unknown_relation_is_a_sentence():
    with pytest.raises(MsifError, match="no fact of P9: choose among P1, P2"):
        made().restricted(["P1", "P9"])


def test_a_plain_sentence_names_the_subject_before_the_object():
    fact = Fact("P19:Q1", "P19", "Ann Lee", ("Rome", "Bern"))

    def plain(text, words=9, lead=1):
        return Plain(words, lead).states(Sentence("s", text, (fact.id,), ("Rome",)), fact)

    assert plain("Ann Lee comes from Rome.")
    assert plain("Rome's Ann Lee left Rome.")
    assert not plain("Rome is where Ann Lee was born.")
    assert not plain("Lee comes from Rome.")
    assert not plain("Ann Lee comes from Bern.")  # right, but not the object asked for
    assert not plain("Ann Lee comes from Rome.", words=4)
    assert not plain("Once Ann Lee came from Rome.", lead=0)


def test_the_selection_counts_what_it_leaves():
    data = made()
    backwards = Sentence("b", "o0 is S0.", ("P1:Q0", "P2:Q0"), ("o0", "o0"))
    data = FactData([*data.sentences, backwards], data.facts, {})
    plain = plainly_stated(data, Plain(words=9, lead=0), minimum=3)
    assert set(plain.facts) == {f"P1:Q{i}" for i in range(6)}
    assert len(plain.sentences) == 18 and backwards.text not in [sentence.text for sentence in plain.sentences]
    assert plain.report == {
        "facts left out by the selection of plain statements": 6,
        "sentences left out by the selection of plain statements": 1,
        "statements of left facts in kept sentences, by the selection of plain statements": 12,
        "relations without plainly stated facts": 1,
    }


def test_balance_leaves_out_rare_objects_and_the_excess_of_common_ones():
    answers = ["a"] * 5 + ["b"] * 2 + ["c"]
    facts = {f"P1:Q{i}": Fact(f"P1:Q{i}", "P1", f"S{i}", (answer,)) for i, answer in enumerate(answers)}
    facts["P2:Q0"] = Fact("P2:Q0", "P2", "S0", ("b",))
    data = FactData([Sentence(id, id, (id,), ("x",)) for id in facts], facts, {})
    few = balanced(data, least=3, most=4, seed=0)
    assert Counter((fact.relation, fact.answers[0]) for fact in few.facts.values()) == {
        ("P1", "a"): 4,
        ("P1", "b"): 2,
        ("P2", "b"): 1,
    }
    assert few.report["facts left out for the balance of answers"] == 2
    assert few.facts == balanced(data, 3, 4, 0).facts
    assert balanced(data, 1, 9, 0).facts == data.facts


def test_a_relation_with_one_fact_cannot_be_halved():
    data = made(2)
    alone = Fact("P3:Q0", "P3", "S0", ("o0",))
    data = FactData([*data.sentences, Sentence("a", "a", (alone.id,), ("a",))], {**data.facts, alone.id: alone}, {})
    kept = divisible(data)
    assert kept.relations == ["P1", "P2"] and len(kept.sentences) == len(data.sentences) - 1
    assert kept.named["relations with a single fact"] == ("P3",)


def test_a_relation_without_question_is_named_and_counted():
    data = with_question(made(), {"P2": "Is [X]?"})
    assert data.relations == ["P2"] and len(data.sentences) == 12
    assert data.report["relations without a question template"] == 1
    assert data.report["facts left out for want of a question template"] == 6
    assert data.named["relations without a question template"] == ("P1",)
