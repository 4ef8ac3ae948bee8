"""Both commands from end to end on saved tiny models."""

import gzip
import json
import os
import re
import subprocess
import sys
from importlib.metadata import version

import pytest
import yaml
from processes import taken
from safetensors.torch import load_file
from transformers import AutoTokenizer, GPTNeoXForCausalLM
from worlds import (
    ALL,
    FACTS,
    QUERY,
    assert_sums,
    by_candidate,
    fit_factors,
    influence,
    near,
    save_lm,
    scores,
    shown,
    write_rows,
)

from msif.candidates.embedding import PACKAGED_MODEL
from msif.curvature.store import FactorStore


def command(name, *arguments):
    """A command as a user starts it."""
    quiet = ("TQDM_DISABLE", "HF_DATASETS_DISABLE_PROGRESS_BARS")  # which --quiet sets, in this process too
    environment = {key: value for key, value in os.environ.items() if key not in quiet}
    environment |= {"OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    line = [sys.executable, "-m", f"msif.{name}", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, env=environment, timeout=300)


@pytest.mark.parametrize("name", ["fit_factors", "influence"])
def test_help_answers_at_once(name):
    start = taken()
    result = command(name, "--help")
    assert taken() - start < 1.5
    assert result.returncode == 0 and f"python -m msif.{name}" in result.stdout and result.stderr == ""


def test_two_commands_as_a_user_types_them(world, tmp_path, zygote):
    """An LM pair: factors of both models, then the ranked list."""
    for model, data in ((world.base, "corpus.jsonl"), (world.tuned, "pairs.jsonl")):
        flags = ["--model", model, "--data", world.folder / data, "--output", tmp_path / model.name, "--diagnostics"]
        if model is world.base:
            fitted = command("fit_factors", *flags)
            status, told, said = fitted.returncode, fitted.stdout, fitted.stderr
        else:  # again, but without the seconds that a start takes
            status, told = zygote.run("msif.fit_factors", *flags)
            said = told
        assert status == 0, said
        assert "blocks of 9 modules" in told and "relative change per doubling" in told
        assert "Traceback" not in said
        assert FactorStore.open(tmp_path / model.name).manifest["provenance"]["versions"]["torch"] == version("torch")
    factors = ["--pretrained-factors", tmp_path / "base", "--finetuned-factors", tmp_path / "tuned"]
    result = command("influence", *world.pair, *factors, *QUERY, *ALL, "--top-k", 3, "--output", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert "examples/s" not in result.stderr and "it/s" not in result.stderr  # bars are for terminals
    assert result.stderr.count("the evidence has 1/τ of ") == 1  # no file tells how the pair was trained
    assert "query  Where was Ada born?" in result.stdout and "answer Linz" in result.stdout
    assert "proponents" in result.stdout and "opponents" in result.stdout
    top = [document for document in shown(tmp_path / "out") if document["kind"] == "proponent"]
    assert top[0]["candidate_id"] in result.stdout and top[0]["text"][:10] in result.stdout
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "config.yaml",
        "manifest.json",
        "page.html",
        "queries.jsonl",
        "scores.parquet",
        "top.jsonl",
    ]


def test_scores_have_their_columns_and_ranks(multi_stage):
    table = scores(multi_stage)
    assert {"query_id", "candidate_id", "row", "score", "rank"} <= set(table.column_names)
    rows = table.to_pylist()
    assert [row["rank"] for row in rows] == list(range(1, len(FACTS) + 1))
    assert {row["candidate_id"] for row in rows} == {f"doc-{n}" for n in range(len(FACTS))}
    assert all(row["candidate_id"] == f"doc-{row['row']}" for row in rows)
    values = [row["score"] for row in rows]
    assert values == sorted(values, reverse=True) and values[0] > 0 > values[-1]
    provenance = json.loads(table.schema.metadata[b"msif"])
    assert provenance["config"]["method"] == "multi-stage" and provenance["left_out"] == {}


def test_shown_documents_carry_their_parts(multi_stage):
    documents = shown(multi_stage)
    values = by_candidate(multi_stage)
    ordered = sorted(values, key=values.get, reverse=True)
    proponents = [d for d in documents if d["kind"] == "proponent"]
    opponents = [d for d in documents if d["kind"] == "opponent"]
    assert [d["candidate_id"] for d in proponents] == [name for name in ordered if values[name] > 0][:3]
    assert [d["candidate_id"] for d in opponents] == [name for name in ordered[::-1] if values[name] < 0][:3]
    for document in documents:
        assert document["score"] == values[document["candidate_id"]]
        assert document["rank"] == ordered.index(document["candidate_id"]) + 1
        assert document["text"] == FACTS[int(document["candidate_id"].removeprefix("doc-"))]
        assert "".join(token for token, _ in document["tokens"]) == document["text"]
        assert any(name.endswith("q0") for name in document["blocks"])
        assert (document["prompt"], document["completion"]) == ("Where was Ada born?", " Linz")
    assert_sums(documents)


def timeless(folder):
    """The contents of all files, without the seconds that the run took."""
    times = re.compile(rb"(answers, candidates and scores|parts of the scores that are shown)\D+[\d.e-]+")
    return {file.name: times.sub(b"", file.read_bytes()) for file in folder.iterdir()}


def test_a_configuration_repeats_a_run(multi_stage, tmp_path):
    before = timeless(multi_stage)
    assert influence("--config", multi_stage / "config.yaml") == 0  # into the same folder
    assert timeless(multi_stage) == before
    assert influence("--config", multi_stage / "config.yaml", "--output", tmp_path / "again") == 0
    assert by_candidate(tmp_path / "again") == by_candidate(multi_stage)
    assert (tmp_path / "again" / "top.jsonl").read_bytes() == before["top.jsonl"]
    assert influence("--config", multi_stage / "config.yaml", "--output", tmp_path / "gdp", "--method", "gdp") == 0
    assert by_candidate(tmp_path / "gdp") != by_candidate(multi_stage)  # a flag overrides the file


def test_a_configuration_repeats_a_fit(world, tmp_path):
    flags = ["--model", world.base, "--data", world.folder / "corpus.jsonl", "--seed", 5, "--label-samples", 2]
    assert fit_factors(*flags, "--modules", "mlp", "--no-split-heads", "--output", tmp_path / "f") == 0
    assert fit_factors("--config", tmp_path / "f" / "config.yaml", "--output", tmp_path / "again") == 0
    for file in tmp_path.glob("f/*.safetensors"):
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()
    written = [yaml.safe_load((tmp_path / name / "config.yaml").read_text()) for name in ("f", "again")]
    assert {**written[0], "output": None} == {**written[1], "output": None}


def test_a_classifier_with_a_head_of_its_own(world, tmp_path, capfd):
    """Single-stage influence cannot express it; only the blocks that both models have take part."""
    flags = [*world.classifying, *ALL]
    assert influence(*flags, "--query", "Rain fell", "--completion", "odd", "--output", tmp_path / "odd") == 0
    assert len(by_candidate(tmp_path / "odd")) == len(FACTS)
    assert_sums(shown(tmp_path / "odd"))
    out = capfd.readouterr().out
    assert "class odd" in out
    assert influence(*flags, "--query", "Rain fell", "--completion", "1", "--output", tmp_path / "one") == 0
    assert by_candidate(tmp_path / "one") == by_candidate(tmp_path / "odd")
    assert influence(*flags, "--query", "Rain fell", "--output", tmp_path / "own") == 0  # the predicted class
    assert isinstance(shown(tmp_path / "own")[0]["label"], int)
    left_out = json.loads((tmp_path / "own" / "manifest.json").read_text())["left_out"]
    assert left_out == {
        "score": "only in the query's (fine-tuned) model",
        "lm_head": "only in the candidates' (pre-trained) model",
    }
    queries = write_rows(
        tmp_path / "q.jsonl", [{"id": "a", "text": "Rain fell", "label": "odd"}, {"id": "b", "text": "x"}]
    )
    assert influence(*flags, "--queries", queries, "--output", tmp_path / "file") == 0
    assert by_candidate(tmp_path / "file", "a") == pytest.approx(by_candidate(tmp_path / "odd"), rel=1e-4, abs=1e-6)
    assert set(scores(tmp_path / "file")["query_id"].to_pylist()) == {"a", "b"}


def test_one_classifier_alone(world, tmp_path):
    flags = ["--finetuned", world.judge, "--finetuned-factors", world.judge_factors, "--task", "classification"]
    data = ["--corpus", world.folder / "labels.jsonl", *ALL, "--method", "single-stage"]
    query = ["--query", FACTS[0], "--completion", "calm"]
    assert influence(*flags, *data, *query, "--output", tmp_path / "out") == 0
    values = by_candidate(tmp_path / "out")
    assert set(values) == set(range(len(FACTS)))  # rows without ids are called by their numbers
    assert values[0] == max(values.values())  # the query itself is among them, and helps itself most


def test_a_file_of_queries(world, tmp_path, multi_stage):
    rows = [
        {"id": "born", "prompt": "Where was Ada born?", "completion": " Linz"},
        {"id": "own", "prompt": "What is late?", "completion": None},
    ]
    queries = write_rows(tmp_path / "q.jsonl", rows)
    flags = [*world.pair, *world.factors, *ALL, "--queries", queries, "--max-new-tokens", 4]
    assert influence(*flags, "--output", tmp_path / "out") == 0
    together = by_candidate(tmp_path / "out", "born")
    assert together == pytest.approx(by_candidate(multi_stage), rel=1e-4, abs=1e-6)
    own = [document for document in shown(tmp_path / "out") if document["query_id"] == "own"]
    answer = own[0]["completion"]
    assert answer == first_letters(world.tuned, "What is late?", 4)
    # given as a completion it has the same scores, and asked alone the model answers the same
    alone = ["--query", "What is late?", "--completion", answer]
    assert influence(*world.pair, *world.factors, *ALL, *alone, "--output", tmp_path / "alone") == 0
    assert by_candidate(tmp_path / "alone") == pytest.approx(by_candidate(tmp_path / "out", "own"), rel=1e-4, abs=1e-6)
    again = ["--query", "What is late?", "--max-new-tokens", 4]
    assert influence(*world.pair, *world.factors, *ALL, *again, "--output", tmp_path / "again") == 0
    assert shown(tmp_path / "again")[0]["completion"] == answer


def first_letters(folder, prompt, count):
    """What a model says greedily."""
    model, tokenizer = GPTNeoXForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    text = prompt
    for _ in range(count):
        text += tokenizer.decode(model(**tokenizer(text, return_tensors="pt")).logits[0, -1].argmax())
    return text[len(prompt) :]


def test_candidates_by_words(world, tmp_path, multi_stage):
    flags = [*world.pair, *world.factors, *QUERY, "--candidates", "bm25:3"]
    assert influence(*flags, "--output", tmp_path / "out") == 0
    values = by_candidate(tmp_path / "out")
    assert len(values) == 3 and "doc-0" in values
    assert values == pytest.approx(
        {k: v for k, v in by_candidate(multi_stage).items() if k in values}, rel=1e-4, abs=1e-6
    )


def test_candidates_by_meaning(world, tmp_path):
    pytest.importorskip(PACKAGED_MODEL)
    for spec, least in (("knn:3", 3), ("knn:2+bm25:3", 3)):
        folder = tmp_path / spec.replace(":", "")
        flags = [*world.pair, *world.factors, *QUERY, "--candidates", spec]
        assert influence(*flags, "--output", folder) == 0
        assert len(by_candidate(folder)) >= least and "doc-0" in by_candidate(folder)


def test_dry_runs_do_nothing(world, tmp_path, capfd):
    flags = ["--model", world.base, "--data", world.folder / "corpus.jsonl", "--output", tmp_path / "f"]
    assert fit_factors(*flags, "--dry-run") == 0
    told = capfd.readouterr().out
    store = FactorStore.open(world.base_factors)
    blocks = sum(len(module.blocks) for module in store.tracked)
    assert f"{blocks} in 9 modules" in told
    assert all(word in told for word in ("parameters", "on disk", "memory", "time"))
    assert influence(*world.pair, *world.factors, *QUERY, "--output", tmp_path / "out", "--dry-run") == 0
    told = capfd.readouterr().out
    assert f"{blocks} shared" in told
    assert all(word in told for word in ("parameters", "on disk", "memory", f"for {len(FACTS)} candidates"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["ekfac", "kfac", "ekfac-cg", "lissa", "arnoldi"])
def test_a_dry_run_reads_no_factors(world, capfd, monkeypatch, kind):
    def load(*_):
        raise AssertionError("factors are read")

    monkeypatch.setattr(FactorStore, "_load", load)
    flags = [*world.pair, *world.factors, *QUERY, "--ihvp", kind, "--damping", 0.1]
    assert influence(*flags, "--dry-run") == 0
    assert ("at most about" in capfd.readouterr().out) == (kind not in ("ekfac", "kfac"))


def test_the_estimated_size_on_disk_is_right(world, capfd):
    from msif.curvature.estimate import human_bytes, sizes

    store = FactorStore.open(world.base_factors)
    tensors = [load_file(file).values() for file in world.base_factors.glob("*.safetensors")]
    real = sum(tensor.numel() * tensor.element_size() for layer in tensors for tensor in layer)
    assert sizes(store.tracked, store.groups).factor_bytes == real
    assert human_bytes(1234567) == "1.2 MB"


def test_a_stream_is_fitted_as_a_file_is(world, tmp_path):
    flags = ["--model", world.base, "--data", world.folder / "corpus.jsonl", "--streaming"]
    assert fit_factors(*flags, "--output", tmp_path / "f") == 0
    assert fit_factors(*flags, "--output", tmp_path / "g", "--dry-run") == 0
    for file in world.base_factors.glob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "f" / file.name).read_bytes()


@pytest.mark.shared
def test_lama_sentences_as_the_corpus(shared_data, tmp_path):
    rows, seen = [], set()
    with gzip.open(shared_data / "lama_trex" / "P19.jsonl.gz", "rt") as lines:
        for line in lines:
            fact = json.loads(line)
            for evidence in fact["evidences"]:
                text = evidence["masked_sentence"].replace("[MASK]", evidence["obj_surface"])
                if text not in seen:
                    seen.add(text)
                    rows.append({"text": text, "subject": fact["sub_label"], "object": fact["obj_label"]})
            if len(rows) >= 300:
                break
    corpus = write_rows(tmp_path / "lama.jsonl", rows)
    pairs = [{"prompt": f"Where was {r['subject']} born?", "completion": f" {r['object']}"} for r in rows[:40]]
    write_rows(tmp_path / "pairs.jsonl", pairs)
    queries = write_rows(tmp_path / "queries.jsonl", pairs[:3])
    near(save_lm(tmp_path / "base"), tmp_path / "tuned")
    length = ["--max-length", 128]
    for model, data in (("base", corpus), ("tuned", tmp_path / "pairs.jsonl")):
        output = tmp_path / f"{model}_factors"
        assert fit_factors("--model", tmp_path / model, "--data", data, "--output", output, *length) == 0
    factors = ["--pretrained-factors", tmp_path / "base_factors", "--finetuned-factors", tmp_path / "tuned_factors"]
    flags = [
        "--pretrained",
        tmp_path / "base",
        "--finetuned",
        tmp_path / "tuned",
        "--corpus",
        corpus,
        *factors,
        *length,
    ]
    assert influence(*flags, "--queries", queries, "--candidates", "bm25:50", "--output", tmp_path / "out") == 0
    table = scores(tmp_path / "out").to_pylist()
    assert len(table) == 150 and {row["query_id"] for row in table} == {"0", "1", "2"}
    documents = shown(tmp_path / "out")
    assert all(document["text"] == rows[document["candidate_id"]]["text"] for document in documents)
    assert_sums(documents)
