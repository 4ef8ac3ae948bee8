"""Facts, sentences and templates from the files of LAMA and of the original T-REx: unique, complete, and counted."""

import gzip
import json

import pytest

from experiments.facts.facts import Fact
from experiments.facts.lama import load_lama
from experiments.facts.questions import cloze, load_clozes, load_questions, question
from experiments.facts.trex import load_trex
from msif.errors import MsifError


def lama_row(relation, subject, answer, *evidences):
    """Evidence is a pair: the masked sentence, and the spelling of the object."""
    return {
        "predicate_id": relation,
        "sub_uri": f"Q{subject}",
        "sub_label": subject,
        "obj_label": answer,
        "evidences": [{"sub_surface": subject, "obj_surface": o, "masked_sentence": s} for s, o in evidences],
    }


def write_lama(folder, rows):
    (folder / "lama_trex").mkdir()
    for relation in {row["predicate_id"] for row in rows}:
        with gzip.open(folder / "lama_trex" / f"{relation}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows if row["predicate_id"] == relation)
    return folder


@pytest.fixture
def lama(tmp_path):
    shared = "Ann was born in [MASK], where Bob died."
    return write_lama(
        tmp_path,
        [
            lama_row("P19", "Ann", "Rome", (shared, "Rome"), ("Ann of [MASK]  sings.", "Roma"), (shared, "Rome")),
            lama_row("P20", "Bob", "Rome", (shared, "Rome")),
            lama_row("P20", "Cy", "Bern"),
            lama_row("P20", "Dee", "Oslo", ("Dee died in peace.", "Oslo")),
            lama_row("P527", "water", "oxygen", ("Of water [MASK] is a part.", "oxygen")),
            lama_row("P527", "water", "hydrogen", ("There is [MASK] in water.", "hydrogen")),
        ],
    )


def test_a_sentence_is_unique_and_states_all_its_facts(lama):
    data = load_lama(lama)
    assert [sentence.text for sentence in data.sentences] == [
        "Ann was born in Rome, where Bob died.",
        "Ann of Roma sings.",
        "Of water oxygen is a part.",
        "There is hydrogen in water.",
    ]
    assert data.sentences[0].facts == ("P19:QAnn", "P20:QBob")
    assert data.sentences[0].targets == ("Rome", "Rome")
    assert data.sentences[1].targets == ("Roma",)
    assert data.sources("P19:QAnn") == [0, 1]
    assert data.sources("P20:QBob") == [0]


def test_a_subject_with_several_objects_is_one_fact(lama):
    fact = load_lama(lama).facts["P527:Qwater"]
    assert fact == Fact("P527:Qwater", "P527", "water", ("oxygen", "hydrogen"))


def test_everything_odd_is_counted_and_named(lama):
    data = load_lama(lama)
    assert data.report == {
        "facts listed (one object each)": 6,
        "evidence listed": 7,
        "evidence repeated for the same fact": 1,
        "evidence without its object in the text, left out": 1,
        "facts without a source, left out": 2,
        "facts with several right objects": 1,
        "sentences that state several facts": 1,
        "unique sentences": 4,
        "facts with a source (one a relation and subject)": 3,
    }
    assert data.named == {
        "facts without a source": ("P20:QCy", "P20:QDee"),
        "facts with evidence that lacks the object": ("P20:QDee",),
        "facts with several right objects": ("P527:Qwater",),
    }
    assert set(data.facts) == {"P19:QAnn", "P20:QBob", "P527:Qwater"}


def test_only_the_relations_asked_for_are_read(lama):
    assert load_lama(lama, ["P20"]).relations == ["P20"]
    with pytest.raises(MsifError, match="no file for P999: choose among P19, P20, P527"):
        load_lama(lama, ["P19", "P999"])


def test_a_folder_without_files_and_a_broken_file_are_sentences(tmp_path, lama):
    with pytest.raises(MsifError, match="give the folder that holds lama_trex"):
        load_lama(tmp_path / "nowhere")
    with gzip.open(lama / "lama_trex" / "P20.jsonl.gz", "at") as file:
        file.write('{"predicate_id": "P20"}\n')
    with pytest.raises(MsifError, match=r"P20.jsonl.gz, line 4: not a fact of LAMA \(KeyError\('sub_uri'\)"):
        load_lama(lama)
    whole = (lama / "lama_trex" / "P19.jsonl.gz").read_bytes()
    (lama / "lama_trex" / "P19.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MsifError, match=r"P19\.jsonl\.gz cannot be read"):
        load_lama(lama)


def trex_entity(text, surface, uri, start=0):
    at = text.index(surface, start)
    return {"uri": uri, "boundaries": [at, at + len(surface)], "surfaceform": surface}


def trex_triple(text, sentence, relation, subject, target):
    return {
        "sentence_id": sentence,
        "predicate": {"uri": f"http://www.wikidata.org/prop/direct/{relation}", "boundaries": None, "surfaceform": ""},
        "subject": trex_entity(text, *subject),
        "object": trex_entity(text, *target),
    }


@pytest.fixture
def trex(tmp_path):
    first, second = "Ann Lee was born in Rome.", "Lee met Bob, who died in Rome."
    text = f"{first} {second}"
    ann, rome = "http://www.wikidata.org/entity/Q1", "http://www.wikidata.org/entity/Q9"
    bob = "http://www.wikidata.org/entity/Q2"
    triples = [
        trex_triple(text, 0, "P19", ("Ann Lee", ann), ("Rome", rome)),
        trex_triple(text, 1, "P20", ("Bob", bob), ("Rome", rome)),
        trex_triple(text, 1, "P3373", ("Lee", ann), ("Bob", bob)),
        trex_triple(text, 1, "P999", ("Ann Lee", ann), ("born", "1970-01-01T00:00:00Z^^http://x/date")),
        {**trex_triple(text, 0, "P19", ("Ann Lee", ann), ("Rome", rome)), "sentence_id": None},
        trex_triple(text, 0, "P20", ("Ann Lee", ann), ("Rome", rome)),
    ]
    bounds = [[0, len(first)], [len(first) + 1, len(text)]]
    document = {"docid": "d", "title": "Ann Lee", "uri": ann, "text": text, "sentences_boundaries": bounds}
    (tmp_path / "re-nlg_0-10000.json").write_text(json.dumps([{**document, "triples": triples}]))
    return tmp_path


def test_trex_gives_sentences_by_their_boundaries_and_names_by_their_commonest_spelling(trex):
    data = load_trex(trex)
    assert [sentence.text for sentence in data.sentences] == [
        "Ann Lee was born in Rome.",
        "Lee met Bob, who died in Rome.",
    ]
    assert data.sentences[0].facts == ("P19:Q1", "P20:Q1")
    assert data.sentences[1].facts == ("P20:Q2", "P3373:Q1")
    assert data.facts["P3373:Q1"] == Fact("P3373:Q1", "P3373", "Ann Lee", ("Bob",))  # twice "Lee" would win
    assert data.report["triples without a sentence, left out"] == 1
    assert data.report["evidence without its object in the text, left out"] == 1
    assert data.named["facts without a source"] == ("P999:Q1",)


def test_trex_that_is_not_trex_is_a_sentence(tmp_path, trex):
    with pytest.raises(MsifError, match=r"no \*\.json"):
        load_trex(tmp_path / "nowhere")
    (trex / "z.json").write_text('{"text": ""}')
    with pytest.raises(MsifError, match="is not a list of documents"):
        load_trex(trex)
    (trex / "z.json").write_text('[{"docid": "x7"}]')
    with pytest.raises(MsifError, match="document 'x7' is not as T-REx writes it"):
        load_trex(trex)


def test_templates(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text('{"relation": "P19", "question": "Where was [X] born?"}\n\n')
    assert load_questions(path) == {"P19": "Where was [X] born?"}
    assert question("Where was [X] born?", "Ann") == "Question: Where was Ann born?\nAnswer:"
    assert cloze("[X] was born in [Y] .", "Ann") == "Ann was born in"
    assert cloze("[Y] took part in [X] .", "Ann") is None


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"relation": "P1", "question": "Where?"}', r"the template 'Where\?' has no \[X\]"),
        ('{"relation": "P19", "question": "[X]?"}', "P19 has a template already"),
        ('{"relation": "P1"}', 'with "relation" and "question" a line'),
        ("nonsense", 'with "relation" and "question" a line'),
    ],
)
def test_bad_templates_are_named_by_line(tmp_path, line, says):
    path = tmp_path / "questions.jsonl"
    path.write_text(f'{{"relation": "P19", "question": "Where was [X] born?"}}\n{line}\n')
    with pytest.raises(MsifError, match=f"line 2: .*{says}"):
        load_questions(path)


def test_a_cloze_needs_both_places(tmp_path):
    (tmp_path / "c.jsonl").write_text('{"relation": "P1", "template": "[X] is."}\n')
    with pytest.raises(MsifError, match=r"has no \[Y\]"):
        load_clozes(tmp_path / "c.jsonl")
    with pytest.raises(MsifError, match="cannot be read"):
        load_clozes(tmp_path / "none.jsonl")


@pytest.mark.shared
def test_all_of_lama(shared_data):
    data = load_lama(shared_data)
    questions = load_questions(shared_data / "lama_questions.jsonl")
    clozes = load_clozes(shared_data / "lama_relations.jsonl")
    assert data.report["facts listed (one object each)"] == 18294
    assert len({sentence.text for sentence in data.sentences}) == len(data.sentences) == 69643
    for sentence in data.sentences:
        assert len(sentence.facts) == len(sentence.targets) > 0
        assert all(target in sentence.text for target in sentence.targets)
    assert len(data.relations) == 22 and all(r in questions and r in clozes for r in data.relations)
    # sums of the counts: every piece of evidence is a statement kept, or a repetition
    statements = sum(len(sentence.facts) for sentence in data.sentences)
    assert statements + data.report["evidence repeated for the same fact"] == data.report["evidence listed"]
