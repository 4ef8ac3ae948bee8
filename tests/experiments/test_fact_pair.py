"""The pair of fact tracing, made small: its files, its halves, its accuracy, and what it is given in error."""

import json
import math
import re
import shutil
from collections import Counter

import pytest
import torch

from experiments.common import training
from experiments.fact_tracing import pair
from experiments.fact_tracing.accuracy import Placed, accuracy_report, answered, chance, clozes
from experiments.fact_tracing.making import Selection, prepare
from experiments.facts.facts import Fact, FactData, Sentence
from experiments.facts.halves import split
from experiments.facts.lama import load_lama
from experiments.facts.questions import load_questions, question
from experiments.facts.reading import read_pair
from msif.errors import MsifError
from msif.json_text import json_lines

TOWNS = ["Rome", "Bern", "Oslo"]
SMALL = ["--layers", "1", "--hidden", "16", "--heads", "2", "--vocabulary", "300"]
SHORT = ["--pretraining-epochs", "1", "--finetuning-epochs", "1", "--min-sentences", "2"]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def data(tmp_path):
    """Two relations of eight people, two sentences a fact; P3 has no question."""
    import gzip

    folder = tmp_path / "data"
    (folder / "lama_trex").mkdir(parents=True)
    for relation, verb in (("P19", "was born in"), ("P20", "died in"), ("P3", "liked")):
        rows = []
        for i in range(8):
            sentences = [f"Person{i} {verb} [MASK].", f"Surely Person{i} {verb} [MASK] long ago."]
            town = TOWNS[i % 3]
            evidences = [{"sub_surface": f"Person{i}", "obj_surface": town, "masked_sentence": s} for s in sentences]
            fact = {"predicate_id": relation, "sub_uri": f"Q{i}", "sub_label": f"Person{i}", "obj_label": town}
            rows.append({**fact, "evidences": evidences})
        with gzip.open(folder / "lama_trex" / f"{relation}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    asked = {"P19": "Where was [X] born?", "P20": "Where did [X] die?"}
    write_rows(folder / "lama_questions.jsonl", [{"relation": r, "question": q} for r, q in asked.items()])
    stated = {"P19": "[X] was born in [Y] .", "P20": "In [Y] died [X] ."}
    write_rows(folder / "lama_relations.jsonl", [{"relation": r, "template": t} for r, t in stated.items()])
    return folder


def run(data, output, *more):
    pair.main(["--data", str(data), "--output", str(output), *SMALL, *SHORT, "--relations", "P19", "P20", *more])


def rows(path):
    return list(json_lines(path))


def test_the_pair_leaves_what_its_readers_expect(data, tmp_path, capsys):
    out = tmp_path / "out"
    run(data, out, "--relations", "P19", "P20", "P3")
    corpus, facts = rows(out / "data" / "corpus.jsonl"), rows(out / "data" / "facts.jsonl")
    finetune, queries = rows(out / "data" / "finetune.jsonl"), rows(out / "data" / "queries.jsonl")
    assert len(corpus) == 32 and len(finetune) == len(queries) == 8
    by_id = {fact["id"]: fact for fact in facts}
    assert {row["id"] for row in finetune}.isdisjoint(row["id"] for row in queries)
    assert Counter(by_id[row["id"]]["relation"] for row in queries) == {"P19": 4, "P20": 4}
    assert all(by_id[row["id"]]["half"] == "query" for row in queries)
    for fact in facts:
        assert len(fact["sources"]) == 2
        for row in fact["sources"]:
            assert fact["id"] in corpus[row]["facts"]
            assert fact["subject"] in corpus[row]["text"] and fact["answers"][0] in corpus[row]["text"]
    born = next(row for row in queries if row["id"].startswith("P19"))
    subject = by_id[born["id"]]["subject"]
    assert born["prompt"] == f"Question: Where was {subject} born?\nAnswer:"
    assert born["completion"] == f" {by_id[born['id']]['answers'][0]}"
    report = json.loads((out / "data" / "report.json").read_text())
    assert report["relations without a question template"] == 1
    assert report["facts left out for want of a question template"] == 8
    for stage in ("pretrained", "finetuned"):
        assert (out / stage / "optimizer.pt").is_file() and (out / stage / "trainer_state.json").is_file()
    accuracy = json.loads((out / "accuracy.json").read_text())
    assert set(accuracy["answered"]) == set(by_id)
    assert accuracy["other_half"]["facts"] == 8 and accuracy["other_half"]["by_relation"]["P19"]["facts"] == 4
    assert set(accuracy["facts_without_cloze"]) == {fact["id"] for fact in facts if fact["relation"] == "P20"}
    assert accuracy["other_half"]["by_relation"]["P20"]["cloze_first"] is None
    printed = capsys.readouterr().out
    assert "Data report" in printed and "relations without a question template" in printed
    assert (out / "report" / "pair.md").is_file()


def test_a_second_run_keeps_and_other_settings_are_refused(data, tmp_path):
    out = tmp_path / "out"
    run(data, out)
    made = (out / "finetuned" / "model.safetensors").stat().st_mtime_ns
    before = (out / "accuracy.json").stat().st_mtime_ns
    run(data, out)
    assert (out / "finetuned" / "model.safetensors").stat().st_mtime_ns == made
    assert (out / "accuracy.json").stat().st_mtime_ns == before
    with pytest.raises(MsifError, match="made with other settings"):
        run(data, out, "--hidden", "32")
    run(data, out, "--finetuning-epochs", "2", "--overwrite")
    assert len(rows_of_steps(out / "finetuned")) == 2


def rows_of_steps(folder):
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


def test_models_that_are_given_are_only_asked(data, tmp_path):
    run(data, tmp_path / "trained")
    models = [f"--{stage}={tmp_path / 'trained' / stage}" for stage in ("pretrained", "finetuned")]
    run(data, tmp_path / "given", *models)
    assert not (tmp_path / "given" / "pretrained").exists()
    trained, given = (json.loads((tmp_path / n / "accuracy.json").read_text()) for n in ("trained", "given"))
    assert given["answered"] == trained["answered"] and given["other_half"] == trained["other_half"]
    assert given["finetuned"] == str(tmp_path / "trained" / "finetuned")


def test_models_that_are_given_are_traced_where_others_were_trained(data, tmp_path):
    run(data, tmp_path / "out")
    assert read_pair(tmp_path / "out").finetuned == str(tmp_path / "out" / "finetuned")
    other = shutil.copytree(tmp_path / "out" / "pretrained", tmp_path / "other")
    run(data, tmp_path / "out", f"--pretrained={other}", f"--finetuned={other}")
    pair = read_pair(tmp_path / "out")
    assert (pair.pretrained, pair.finetuned) == (str(other), str(other))
    answers = json.loads((tmp_path / "out" / "accuracy.json").read_text())
    shutil.rmtree(other)
    shutil.copytree(tmp_path / "out" / "finetuned", other)  # of the same name, but another model
    run(data, tmp_path / "out", f"--pretrained={other}", f"--finetuned={other}")
    again = json.loads((tmp_path / "out" / "accuracy.json").read_text())
    assert again["settings"]["weights"] != answers["settings"]["weights"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--pretrained", "x"], "give --pretrained and --finetuned, or neither"),
        (["--min-sentences", "3"], "no two facts of a relation have a question, 3 plain sentences of at most 30 words"),
        (["--relations", "P3"], "no two facts of a relation have a question"),
        (["--relations", "P777"], "has no file for P777: choose among P19, P20, P3"),
        (["--facts", "1"], "no two facts of a relation"),
        (["--data", "nowhere"], "give the folder that holds lama_trex with --data"),
    ],
)
def test_what_cannot_be_made_is_one_sentence(data, tmp_path, flags, says):
    with pytest.raises(MsifError, match=re.escape(says)):
        run(data, tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()


def facts(*answers):
    made = [Fact(f"P1:Q{i}", "P1", f"S{i}", a) for i, a in enumerate(answers)]
    return FactData([Sentence("s", "x", tuple(f.id for f in made), ("x",) * len(made))], {f.id: f for f in made}, {})


def test_halves_are_drawn_within_relations_and_the_spare_fact_is_asked():
    data = facts(*[("a",)] * 7)
    halves = split(data, 0)
    assert Counter(halves.values()) == {"finetune": 3, "query": 4}
    assert halves == split(data, 0)
    assert len({tuple(split(data, seed).items()) for seed in range(5)}) > 1


def test_chance_is_the_best_constant_answer_and_any_right_object_counts():
    data = facts(("a",), ("b", "a"), ("c",), ("b",))
    assert chance(list(data.facts.values())) == 0.5
    other = Fact("P2:Q0", "P2", "S", ("z",))
    assert chance([*data.facts.values(), other]) == 0.6


def test_cloze_places_and_answers_by_hand():
    """Against probabilities computed token by token, without batches or padding."""
    texts = ["S0 is in Rome", "S1 is in Bern or Oslo", "Question: Where is S0?\nAnswer: Bern", "New York City"]
    tokenizer = training.build_tokenizer(texts * 2, 300)
    model = training.new_model(tokenizer, training.ModelSize(1, 16, 2), 0).eval()
    data = facts(("Rome",), ("Bern", "Rome"), ("New York City",))

    def probability(prompt, name):
        start, rest = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, f" {name}"))
        total = 0.0
        for i, token in enumerate(rest):
            with torch.no_grad():
                total += model(torch.tensor([start + rest[:i]])).logits[0, -1].double().log_softmax(-1)[token].item()
        return math.exp(total)

    placed = clozes(model, tokenizer, data, {"P1": "[X] is in [Y] ."})
    for number, names in enumerate((("Rome", "Bern", "New York City"), ("Bern", "New York City"))):
        values = [probability(f"S{number} is in", name) for name in names]
        found = placed[f"P1:Q{number}"]
        assert found.rank == 1 + sum(value > values[0] for value in values[1:])
        assert found.probability == pytest.approx(values[0] / sum(values), rel=1e-4)
    assert clozes(model, tokenizer, data, {}) == {}

    asked = {"P1": "Where is [X]?"}
    prompt = question(asked["P1"], "S1")
    training.train(
        model, [training.completion(tokenizer, prompt, " Rome")], training.Schedule(60, 1e-2, 1), 0, "one answer"
    )
    right = answered(model, tokenizer, list(data.facts.values())[1:], asked)
    assert right["P1:Q1"] is True  # its second object
    assert right["P1:Q2"] is False


def test_the_report_adds_up():
    data = facts(("a",), ("b",), ("a",), ("c",))
    halves = dict(zip(data.facts, ("finetune", "query", "query", "query"), strict=True))
    right = dict(zip(data.facts, (True, True, False, False), strict=True))
    placed = {"P1:Q1": Placed(1, 0.9), "P1:Q2": Placed(4, 0.1)}
    report = accuracy_report(data, halves, right, placed)
    other = report["other_half"]
    assert other["facts"] == 3 and other["answered"] == other["chance"] == pytest.approx(1 / 3)
    assert (other["cloze_first"], other["cloze_mrr"], other["cloze_probability"]) == (0.5, 0.625, 0.5)
    assert report["finetuned_half"]["answered"] == 1 and report["finetuned_half"]["cloze_first"] is None
    assert report["facts_without_cloze"] == ["P1:Q0", "P1:Q3"]


@pytest.mark.shared
def test_default_selection_of_lama(shared_data):
    material = prepare(load_lama(shared_data), Selection(), shared_data, 0)
    assert material.data.relations and set(material.data.relations) <= set(
        load_questions(shared_data / "lama_questions.jsonl")
    )
    for fact in material.data.facts.values():
        assert len(material.data.sources(fact.id)) >= 2
        assert sum(f.answers[0] == fact.answers[0] for f in material.data.of_relation(fact.relation)) <= 8
    asked = [id for id, half in material.halves.items() if half == "query"]
    assert len(asked) >= 400
