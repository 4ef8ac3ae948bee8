"""The mean of runs of several pairs."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from result_folders import scored, shown, write_results

from msif.average import main
from msif.errors import MsifError
from msif.reporting.averages import average_runs
from msif.reporting.runs import read_run


def told(query="a", answer=" Ada", log_p=-1.0):
    row = {"id": query, "prompt": "Who?", "completion": answer, "label": None, "fields": {"relation": "name"}}
    return {**row, "tokens": [[answer, log_p]], "occurrences": 3, "documents": 9}


def document(place, score, words=None, **changes):
    kind = "proponent" if score > 0 else "opponent"
    words = [["one", 0.75 * score], ["two", 0.25 * score]] if words is None else words
    given = {"candidate_id": f"p{place}", "prompt": "Who?", "completion": " Ada", "text": f"document {place}"}
    given |= {"tokens": words, "blocks": {"b.0": 0.1 * score, "b.1": 0.9 * score}, "norm": abs(score)}
    return shown("a", kind, 1, score, **{**given, **changes})


def run(folder, scores, documents=None, *, log_p=-1.0, **config):
    """A run of one query about documents p1, p2, ...; by default it shows all of them."""
    rows = [document(place, score) for place, score in enumerate(scores, 1)] if documents is None else documents
    order = np.argsort(-np.array(scores), kind="stable")
    table = scored("a", scores)
    for rank, place in enumerate(order, 1):
        table[place]["rank"] = rank
    return write_results(folder, rows, table, [told(log_p=log_p)], **{"finetuned": "m1", **config})


@pytest.fixture
def pair(tmp_path):
    return [
        run(tmp_path / "one", [4.0, 1.0, -2.0, 3.0], log_p=-1.0, pretrained="m0-a"),
        run(tmp_path / "other", [2.0, 3.0, -4.0, -5.0], log_p=-2.0, pretrained="m0-b"),
    ]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_scores_and_parts_are_means(pair, tmp_path):
    folder = average_runs(pair, tmp_path / "mean", top_k=2)
    table = pq.read_table(folder / "scores.parquet").to_pylist()
    found = [(row["candidate_id"], row["score"], row["rank"], row["row"]) for row in table]
    assert found == [("p1", 3.0, 1, 1), ("p2", 2.0, 2, 2), ("p4", -1.0, 3, 4), ("p3", -3.0, 4, 3)]
    rows = lines(folder / "top.jsonl")
    assert [(row["candidate_id"], row["kind"], row["rank"], row["score"]) for row in rows] == [
        *(("p1", "proponent", 1, 3.0), ("p2", "proponent", 2, 2.0)),
        *(("p3", "opponent", 4, -3.0), ("p4", "opponent", 3, -1.0)),
    ]
    assert rows[0]["tokens"] == [["one", 2.25], ["two", 0.75]]
    assert rows[0]["blocks"] == pytest.approx({"b.1": 2.7, "b.0": 0.3}) and rows[0]["norm"] == 3.0
    assert list(rows[0]["blocks"]) == ["b.1", "b.0"]
    [query] = lines(folder / "queries.jsonl")
    assert query["tokens"] == [[" Ada", -1.5]] and query["fields"] == {"relation": "name"}


def test_the_manifest_keeps_what_the_runs_have_in_common(pair, tmp_path):
    config = read_run(average_runs(pair, tmp_path / "mean")).config
    assert config["finetuned"] == "m1" and "pretrained" not in config
    assert config["averaged"] == [str(folder) for folder in pair]
    again = f"python -m msif.average {pair[0]} {pair[1]} --output {tmp_path / 'mean'} --top-k 10"
    assert again in (tmp_path / "mean" / "page.html").read_text()


def test_a_document_that_one_run_shows_keeps_its_text_alone(tmp_path, caplog, capsys):
    """And one that no run shows has none to be shown with."""
    scores = [[4.0, 3.0, 2.0], [4.0, 3.0, 2.0]]
    one = run(tmp_path / "one", scores[0], [document(1, 4.0), document(2, 3.0)])
    other = run(tmp_path / "other", scores[1], [document(1, 4.0, prior=1.0)])
    (one / "top.jsonl").write_text((one / "top.jsonl").read_text().replace('"norm"', '"self_influence": 9.0, "norm"'))
    main([str(one), str(other), "--output", str(tmp_path / "mean")])
    rows = lines(tmp_path / "mean" / "top.jsonl")
    assert [row["candidate_id"] for row in rows] == ["p1", "p2"]
    assert rows[0]["tokens"] and not rows[0]["partly"]
    assert rows[1]["text"] == "document 2" and rows[1]["partly"]
    assert (rows[1]["tokens"], rows[1]["blocks"], rows[1]["by_answer"], rows[1]["norm"]) == ([], {}, [], None)
    assert rows[1]["self_influence"] is None and rows[0]["self_influence"] is None
    assert "1 of 2 shown documents are without words" in caplog.text
    assert "the mean of 2 runs" in capsys.readouterr().out


def test_words_of_two_tokenizers_are_not_averaged(tmp_path):
    one = run(tmp_path / "one", [4.0])
    other = run(tmp_path / "other", [2.0], [document(1, 2.0, [["onetwo", 2.0]], blocks={"c": 2.0})])
    [row] = lines(average_runs([one, other], tmp_path / "mean") / "top.jsonl")
    assert row["tokens"] == [] and row["blocks"] == {} and row["partly"] and row["norm"] == 3.0


SPLIT = [[1.0, 1.0], [1.0, 0.0]]


@pytest.mark.parametrize(
    ("words", "answer", "kept"),
    [
        (["one", "two"], [" A", "da"], [[2.0, 1.0], [1.0, 0.0]]),
        (["on", "etwo"], [" A", "da"], []),
        (["one", "two"], [" Ad", "a"], []),
        (["one", "two"], None, []),
    ],
)
def test_parts_by_the_answer_are_averaged_of_equal_tokens_alone(tmp_path, words, answer, kept):
    folders = []
    for name, cut, said, split in (
        ("one", ["one", "two"], [" A", "da"], SPLIT),
        ("other", words, answer, [[3.0, 1.0], [1.0, 0.0]]),
    ):
        rows = [document(1, 3.0, [[word, 1.5] for word in cut], by_answer=split)]
        asked = {**told(), "tokens": said and [[word, -1.0] for word in said]}
        folders.append(write_results(tmp_path / name, rows, scored("a", [3.0]), [asked]))
    folder = average_runs(folders, tmp_path / "mean")
    [row] = lines(folder / "top.jsonl")
    assert row["by_answer"] == kept and (folder / "page.html").is_file()


@pytest.mark.parametrize("shared", [1, 2])
def test_documents_that_say_something_else_are_not_one(pair, tmp_path, shared):
    rows = [document(place, 1.0, text=f"document {place if place < shared else -place}") for place in range(1, 5)]
    other = run(tmp_path / "third", [1.0] * 4, rows)
    with pytest.raises(MsifError, match=r"one and .*third scored documents that have the same ids and other texts"):
        average_runs([*pair, other], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


def test_documents_that_are_not_shown_are_told_by_their_hash(tmp_path):
    folders = []
    for name, documents in (("one", "a"), ("older", None), ("same", "a"), ("other", "b")):
        folders.append(run(tmp_path / name, [4.0], [document(1, 4.0)] if name == "one" else []))
        manifest = json.loads((folders[-1] / "manifest.json").read_text())
        (folders[-1] / "manifest.json").write_text(json.dumps({**manifest, "documents": documents}))
    mean = average_runs(folders[:3], tmp_path / "mean")
    for others in ([*folders], [mean, folders[3]], [folders[1], mean, folders[3]]):
        with pytest.raises(MsifError, match="other scored documents that have the same ids and other texts"):
            average_runs(others, tmp_path / "again")


def test_a_prior_stays_apart_from_influence(tmp_path):
    folders = []
    for name, own, added in (("one", 4.0, 1.0), ("other", 1.0, 2.0)):
        rows = [document(1, own + added, [["one", own]], prior=added)]
        folders.append(run(tmp_path / name, [own + added], rows, prior="bm25:1.0"))
        table = pq.read_table(folders[-1] / "scores.parquet").to_pylist()
        write_results(folders[-1], rows, [{**table[0], "influence": own}], [told()], prior="bm25:1.0")
    folder = average_runs(folders, tmp_path / "mean")
    [scores] = pq.read_table(folder / "scores.parquet").to_pylist()
    assert (scores["score"], scores["influence"]) == (4.0, 2.5)
    [row] = lines(folder / "top.jsonl")
    assert row["prior"] == 1.5 and row["tokens"] == [["one", 2.5]]


def test_three_runs_and_a_mean_of_means(pair, tmp_path):
    third = run(tmp_path / "third", [3.0, 5.0, 0.0, 2.0])
    folder = average_runs([*pair, third], tmp_path / "mean")
    assert read_run(folder).scores["a"].scores.tolist() == pytest.approx([3.0, 3.0, 0.0, -2.0])
    assert read_run(folder).scores["a"].ids == ["p1", "p2", "p4", "p3"]
    again = average_runs([folder, third], tmp_path / "again")
    assert read_run(again).scores["a"].scores.max() == 4.0


def test_a_mean_is_made_anew(pair, tmp_path):
    folder = average_runs(pair, tmp_path / "mean")
    other = run(tmp_path / "third", [9.0, 0.0, 0.0, 0.0])
    assert read_run(average_runs([pair[0], other], folder)).scores["a"].scores[0] == 6.5


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "gdp"}, "differ in method"),
        ({"normalize": "unit"}, "differ in normalize"),
        ({"scores": [1.0, 2.0, 3.0]}, "scored other candidates"),
        ({"answer": " Bob"}, "give its answer"),
        ({"query": "b"}, "is not in both"),
    ],
)
def test_runs_of_another_kind(changes, said, pair, tmp_path):
    changes = dict(changes)
    query, answer = changes.pop("query", "a"), changes.pop("answer", " Ada")
    scores = scored(query, changes.pop("scores", [1.0, 2.0, 3.0, 4.0]))
    other = write_results(tmp_path / "third", [], scores, [told(query, answer)], **changes)
    with pytest.raises(MsifError, match=said):
        average_runs([pair[0], other], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


def test_folders_that_are_none(pair, tmp_path):
    with pytest.raises(MsifError, match="there is one run"):
        average_runs(pair[:1], tmp_path / "mean")
    with pytest.raises(MsifError, match="given twice"):
        average_runs([pair[0], pair[0].parent / "." / "one"], tmp_path / "mean")
    with pytest.raises(MsifError, match="is one of the runs"):
        average_runs(pair, pair[1])
    with pytest.raises(MsifError, match=r"holds no manifest\.json"):
        average_runs([pair[0], tmp_path], tmp_path / "mean")
    (tmp_path / "file").write_text("")
    with pytest.raises(MsifError, match="is a file"):
        average_runs(pair, tmp_path / "file")
    single = run(tmp_path / "single", [1.0])
    with pytest.raises(MsifError, match="holds no mean of runs"):
        average_runs(pair, single)
