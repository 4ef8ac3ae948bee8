"""The index on the command line: built, asked, as preselection, and every way to ask it wrongly."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM
from worlds import ALL, QUERY, by_candidate, call, influence, near, save_lm, save_tokenizer, write_rows

import msif
from msif import build_index
from msif.errors import MsifError
from msif.index.scorer import IndexScorer
from msif.index.settings import IndexSettings
from msif.job import Job

FLAGS = ["--projection", "4", "--blocks", "2", "--batch-tokens", "80", "--quiet"]


def build(*arguments):
    return call(build_index.main, *arguments, *([] if "--quiet" in arguments else ["--quiet"]))


@pytest.fixture(scope="module")
def indexes(world, tmp_path_factory):
    """Of the pre-trained model: TrackStar's, and one for multi-stage influence."""
    folder = tmp_path_factory.mktemp("indexes")
    model = ["--model", world.base, "--data", world.folder / "corpus.jsonl", *FLAGS]
    assert build(*model, "--output", folder / "trackstar") == 0
    assert (
        build(
            *model,
            "--output",
            folder / "curved",
            "--factors",
            world.base_factors,
            "--projection",
            "64",
            "--basis",
            "leading",
        )
        == 0
    )
    return folder


@pytest.fixture
def ask(world, indexes, tmp_path):
    def run(*arguments, name="out", query=QUERY):
        pair = [
            "--pretrained",
            world.base,
            "--corpus",
            world.folder / "corpus.jsonl",
            *query,
            "--output",
            tmp_path / name,
        ]
        assert influence(*pair, *arguments, "--quiet") == 0
        return tmp_path / name

    return run


def test_trackstar_gives_what_every_method_gives(ask, indexes, world, capfd):
    out = ask("--method", "trackstar", "--index", indexes / "trackstar", "--top-k", 3)
    scores = by_candidate(out)
    assert len(scores) == 8 and all(-1 <= score <= 1 for score in scores.values())
    top = [json.loads(line) for line in (out / "top.jsonl").read_text().splitlines()]
    assert top and "tokens" in json.dumps(top[0])
    assert (out / "page.html").is_file() or list(out.glob("*.html"))
    plain = by_candidate(ask("--method", "trackstar", "--index", indexes / "trackstar", "--r", "none", name="r"))
    dot = ask(
        "--method", "trackstar", "--index", indexes / "trackstar", "--r", "none", "--normalize", "none", name="dot"
    )
    assert len({tuple(one.values()) for one in (scores, plain, by_candidate(dot))}) == 3
    again = ask("--method", "trackstar", "--index", indexes / "trackstar", "--top-k", 3)  # nothing is scored again
    assert by_candidate(again) == scores


ASKED = [("Where was Ada born?", " Linz"), ("Who?", " Ada"), ("What?", " A goat"), ("Is it late", " yes"), ("x", "y")]


def hold(monkeypatch, queries):
    """Memory for the vectors of so many while they are made."""
    monkeypatch.setattr(Job, "room", property(lambda job: int(4 * job.scorer.cost().making * queries)))


@pytest.mark.parametrize("r", ["mixed", "mixed:0.5", "train"])
def test_memory_changes_no_score(indexes, world, monkeypatch, r):
    """R_eval is of all queries of a run, in however many passes they come. R amplifies rounding."""
    stage = msif.Stage(world.base, data=world.folder / "corpus.jsonl")
    options = {"method": "trackstar", "index": indexes / "trackstar", "r": r, "top_k": 1}
    whole = msif.attribute(stage, ASKED, **options)
    passes, score = [], IndexScorer.score_vectors
    monkeypatch.setattr(
        IndexScorer, "score_vectors", lambda self, v, *rest: passes.append(len(v.values)) or score(self, v, *rest)
    )
    for held, expected_passes in ((1, [1] * 5), (2, [3, 2]), (3, [4, 1])):
        hold(monkeypatch, held)
        passes.clear()
        found = msif.attribute(stage, ASKED, **options)
        assert passes == expected_passes
        for query in range(5):
            expected = whole.scores(query)
            assert found.scores(query) == pytest.approx(expected, abs=5e-3 * max(map(abs, expected.values())))
            parts = [sum(part for _, part in one.tokens) for one in (*found.top(query), *whole.top(query))]
            assert parts[0] == pytest.approx(parts[1], rel=1e-2)


def test_what_a_pass_had_scored_by_another_r_is_not_taken(ask, indexes, monkeypatch, tmp_path):
    first, second, third = ({"id": one[0], "prompt": one[0], "completion": one[1]} for one in ASKED[:3])
    queries = tmp_path / "queries.jsonl"
    asked = ["--method", "trackstar", "--index", indexes / "trackstar", "--queries", queries, "--top-k", 1]
    hold(monkeypatch, 1)
    score, passes = IndexScorer.score_vectors, []

    def failing(self, *arguments):
        passes.append(1)
        if len(passes) == 2:
            raise RuntimeError("here")
        return score(self, *arguments)

    write_rows(queries, [first, second])
    with monkeypatch.context() as patch:
        patch.setattr(IndexScorer, "score_vectors", failing)
        with pytest.raises(RuntimeError, match="here"):
            ask(*asked, name="out", query=())
    assert (tmp_path / "out" / "partial.safetensors").exists()
    write_rows(queries, [first, third])  # so that R_eval of the first query's pass is another
    found = [by_candidate(ask(*asked, name=name, query=()), first["id"]) for name in ("out", "fresh")]
    assert found[0] == pytest.approx(found[1], rel=1e-6)


@pytest.mark.parametrize("built", [6, 20, 512])
def test_what_is_shown_is_what_the_index_has(world, tmp_path, built):
    """Of documents cut at its length: words and blocks sum to the score, whatever --max-length queries have."""
    model = {"data": world.folder / "corpus.jsonl", "batch_tokens": 64}
    settings = IndexSettings(blocks=1, projection=4, dtype="float32")
    stage = msif.Stage(world.base, max_length=built, **model)
    index = msif.make_index(stage, tmp_path / "index", settings, second_moments="none")
    assert max(index.documents["tokens"].to_pylist()) <= built
    found = {}
    for asked in (26, 200):
        stage = msif.Stage(world.base, max_length=asked, **model)
        options = {"method": "trackstar", "index": index.path, "r": "none", "top_k": 4}
        result = msif.attribute(stage, [("Where was Ada born?", " Linz")], **options)
        for one in result.top():
            assert len(one.tokens) <= built
            scale = 1e-3 * max(abs(part) for _, part in one.tokens)
            for parts in ([part for _, part in one.tokens], one.blocks.values()):
                assert sum(parts) == pytest.approx(one.score, abs=scale)
        found[asked] = result.scores()
    assert found[26] == found[200]


def test_a_query_without_a_gradient_scores_zero(world, tmp_path):
    """Of a model that is so sure of its answer that the loss is zero, as are the documents' where it is as sure."""
    model = AutoModelForCausalLM.from_pretrained(world.base)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(3000)
    model.save_pretrained(tmp_path / "sure")
    save_tokenizer(tmp_path / "sure")
    stage = msif.Stage(tmp_path / "sure", data=world.folder / "corpus.jsonl")
    settings = IndexSettings(blocks=1, projection=2, dtype="float32")
    index = msif.make_index(stage, tmp_path / "index", settings, second_moments="none")
    assert len(index) == 8
    for r in ("mixed", "none"):
        result = msif.attribute(stage, ["Where was Ada born?"], method="trackstar", index=index.path, r=r, top_k=2)
        assert set(result.scores().values()) == {0.0}
    assert (result.save(tmp_path / "out") / "page.html").is_file()


def test_an_index_preselects_for_exact_influence(ask, indexes, world):
    two = ["--finetuned", world.tuned, *world.factors]
    exact = by_candidate(ask(*two, *ALL, name="exact"))
    by_index = by_candidate(ask(*two, "--index", indexes / "curved", name="index"))
    chosen = by_candidate(ask(*two, "--index", indexes / "curved", "--candidates", "index:3", name="cascade"))
    best = sorted(by_index, key=by_index.get, reverse=True)[:3]
    assert set(chosen) == set(best)
    assert all(chosen[name] == pytest.approx(exact[name], rel=1e-4) for name in chosen)
    names = list(exact)
    assert np.corrcoef([exact[n] for n in names], [by_index[n] for n in names])[0, 1] > 0.95
    other = ["--index", indexes / "trackstar", "--method", "gdp", "--candidates", "index:2+bm25:1"]
    assert 2 <= len(by_candidate(ask(*two[:2], *other, name="gdp"))) <= 3


def test_the_library_asks_it_too(indexes, world):
    stage = msif.Stage(world.base, data=world.folder / "corpus.jsonl")
    result = msif.attribute(
        stage, [("Where was Ada born?", " Linz")], method="trackstar", index=indexes / "trackstar", normalize="unit"
    )
    assert isinstance(result.to_pandas(), pd.DataFrame) and len(result.to_pandas()) == 8
    index = msif.GradientIndex.open(indexes / "trackstar")
    assert len(index) == 8 and index.documents["id"].to_pylist()[0].startswith('"doc-')


def test_the_library_needs_an_index_where_the_command_does(indexes, world):
    """And never takes another method in its place."""
    stage = msif.Stage(world.base, data=world.folder / "corpus.jsonl")
    queries = [("Where was Ada born?", " Linz")]
    for options, said in (
        ({"method": "trackstar"}, "trackstar needs --index"),
        ({"method": "gdp", "candidates": "index:3"}, "--candidates index needs --index"),
        ({"method": "gdp", "candidates": "all", "index": indexes / "trackstar"}, "only for --candidates index:N"),
        ({"method": "trackstar", "index": indexes / "trackstar", "query_rank": 4}, "no option 'query_rank'"),
    ):
        with pytest.raises(MsifError, match=said):
            msif.attribute(stage, queries, **options)
    with pytest.raises(MsifError, match="scores by an index"):
        msif.build_scorer("trackstar", msif.FittedStage(stage.side), None)
    with pytest.raises(MsifError, match="found by their gradients"):
        msif.build_selector("index:5")


def test_baked_vectors_answer_alike_and_faiss_chooses_by_them(ask, world, tmp_path, capfd, monkeypatch):
    pytest.importorskip("faiss")
    from msif.index.approximate import Approximate

    folder = tmp_path / "index"
    model = ["--model", world.base, "--data", world.folder / "corpus.jsonl", *FLAGS, "--output", folder]
    asked = ["--method", "trackstar", "--index", folder, "--r", "train"]
    assert build(*model) == 0
    raw = by_candidate(ask(*asked, name="raw"))
    capfd.readouterr()
    assert build(*model, "--bake", "train", "--faiss") == 0
    said = capfd.readouterr().out
    assert "baked: unit vectors for --r train --normalize unit" in said
    assert "faiss: Flat finds 100% of the first 10 and 100% of the first 100 of exact search" in said
    baked = by_candidate(ask(*asked, name="baked"))
    assert baked != raw and all(baked[name] == pytest.approx(raw[name], abs=0.01) for name in raw)
    best = sorted(raw, key=raw.get, reverse=True)[:2]
    searched = []
    search = Approximate.search
    monkeypatch.setattr(Approximate, "search", lambda *args, **more: searched.append(1) or search(*args, **more))
    chosen = ["--index", folder, "--r", "train", "--candidates", "index:2"]
    for method in ("trackstar", "gdp"):
        exact = by_candidate(ask("--method", method, *chosen, name=f"{method}-exact"))
        ours = by_candidate(ask("--method", method, *chosen, "--search", "faiss", name=f"{method}-faiss"))
        assert set(ours) == set(best) and ours == exact
    assert len(searched) == 2
    stage = msif.Stage(world.base, data=world.folder / "corpus.jsonl")
    options = {"method": "gdp", "index": folder, "candidates": "index:2", "r": "train", "search": "faiss"}
    result = msif.attribute(stage, [("Where was Ada born?", " Linz")], **options).to_pandas()
    assert len(result) == 2 and len(searched) == 3
    with pytest.raises(MsifError, match="R is 'train' without an index"):
        msif.attribute(stage, [("Where was Ada born?", " Linz")], method="gdp", r="train")


def test_what_cannot_be_baked_or_searched_is_said(explain, indexes, world, tmp_path, refused):
    none = {"pretrained_factors": None, "finetuned_factors": None}
    chosen = {"index": indexes / "trackstar", "candidates": "index:2", "method": "gdp", **none}
    explain("--candidates index needs --index", "--search", "faiss", **{**chosen, "index": None})
    trackstar = {**chosen, "method": "trackstar", "candidates": "all"}
    explain("--search faiss finds candidates of an index", "--search", "faiss", **trackstar)
    explain("mixed R depends on the queries: give --r none or --r train", "--search", "faiss", **chosen)
    curved = {"index": indexes / "curved", "candidates": "index:2", "method": "multi-stage"}
    explain("with --normalize unit, or --search exact", "--search", "faiss", **curved)
    pytest.importorskip("faiss")
    explain("there is nothing of faiss in", "--search", "faiss", "--r", "train", **chosen)
    explain("there is nothing of faiss in", "--search", "faiss", "--normalize", "unit", **curved)
    model = ["--model", world.base, "--data", world.folder / "corpus.jsonl", "--output", tmp_path / "index", *FLAGS]
    refused(build, "R 'mixed' cannot be baked: give none or train", *model, "--bake", "mixed")
    refused(build, "give --bake train or --bake none with --faiss", *model, "--faiss")
    refused(build, "faiss cannot read 'IFV8'", *model, "--bake", "none", "--faiss", "IFV8")
    assert not (tmp_path / "index").exists()


def test_shares_say_that_they_are_done_and_the_last_one_bakes(world, indexes, tmp_path, capfd):
    folder = tmp_path / "index"
    model = ["--model", world.base, "--data", world.folder / "corpus.jsonl", *FLAGS, "--output", folder]
    assert build(*model, "--shard", "1/2", "--bake", "train") == 0
    out, err = capfd.readouterr()
    assert out == f"this share is done; others of {folder} are not\n" and "Traceback" not in err
    configuration = folder / "config.yaml"
    assert "shard" not in yaml.safe_load(configuration.read_text())
    assert build("--config", configuration, "--shard", "2/2", "--bake", "train") == 0
    out = capfd.readouterr().out
    assert f"{folder}: 8 documents" in out and "baked: unit vectors for --r train --normalize unit" in out
    assert build("--config", configuration, "--dry-run") == 0 and "for 8 documents" in capfd.readouterr().out
    one, two = (msif.GradientIndex.open(path) for path in (folder, indexes / "trackstar"))
    assert one.places.keys() == two.places.keys()
    written = tmp_path / "by-hand.yaml"
    written.write_text(configuration.read_text() + "shard: 1/2\n")
    assert build("--config", written, "--output", tmp_path / "half") == 0
    assert "this share is done" in capfd.readouterr().out


def test_shares_of_another_split_are_refused_before_the_work(world, tmp_path, refused):
    folder = tmp_path / "index"
    model = ["--model", world.base, "--data", world.folder / "corpus.jsonl", *FLAGS, "--output", folder]
    assert build(*model, "--shard", "1/3") == 0
    said = "is being made in 3 shares, not in {}: give --shard I/3 .* or leave --shard out"
    for other, of in (("1/2", 2), ("2/2", 2), ("4/4", 4)):
        refused(build, said.format(of), *model, "--shard", other, "--model", tmp_path / "not-even-there")
    for file in folder.glob("shards.*"):
        file.unlink()  # as while the first share is at work
    refused(build, said.format(2), *model, "--shard", "1/2")
    assert build(*model) == 0
    assert build(*model, "--shard", "1/2") == 0  # of an index that is complete documents join in any number of shares


def test_what_is_wrong_is_said_before_the_work(ask, explain, indexes, world, tmp_path, fit, refused):
    trackstar = {"method": "trackstar", "index": indexes / "trackstar", "candidates": None}
    none = {"pretrained_factors": None, "finetuned_factors": None}
    explain("needs --index: make one", **{**trackstar, "index": None}, **none)
    explain("--candidates index needs --index", candidates="index:5")
    explain("reads an index only for --candidates index:N", index=indexes / "trackstar", method="gdp", **none)
    explain("does not read --r", "--r", "train", method="gdp", **none)
    explain("no index at", **{**trackstar, "index": tmp_path / "none"}, **none)
    explain("R is 'mixed:1.5'", "--r", "mixed:1.5", **trackstar, **none)
    explain("R is 'all'", "--r", "all", **trackstar, **none)
    explain("was made without factors: use it with --method trackstar", index=indexes / "trackstar", candidates="all")
    explain(
        "was made with factors: use it with --method multi-stage", **{**trackstar, "index": indexes / "curved"}, **none
    )
    explain("was built with another model", **trackstar, pretrained=world.tuned, **none)
    rows = [{"id": "new", "text": "Nobody has seen this."}]
    write_rows(tmp_path / "new.jsonl", rows)
    explain("1 documents are not in the index", **trackstar, corpus=tmp_path / "new.jsonl", **none)
    model = {"--model": world.base, "--data": world.folder / "corpus.jsonl", "--output": tmp_path / "index"}

    def wrong(match, *more, **changes):
        given = [part for flag, value in {**model, **changes}.items() for part in (flag, value)]
        refused(build, match, *given, *more)
        assert not (tmp_path / "index").exists()

    wrong("there is no optimizer.pt", "--second-moments", "adam")
    wrong("there is no file of second moments", "--second-moments", tmp_path / "v.safetensors")
    wrong("leading entries", "--basis", "leading")
    wrong("takes no second moments", "--factors", world.base_factors, "--second-moments", "estimate")
    wrong("fitted for another model|weights of", "--factors", world.tuned_factors)
    wrong("is no share", "--shard", "3/2")
    wrong("has no field", "--text-field", "body")
    with pytest.raises(MsifError):
        msif.GradientIndex.open(world.base_factors)


def test_a_stream_is_indexed_too_and_its_moments_are_of_its_first_documents(world, indexes, tmp_path, monkeypatch):
    model = ["--model", world.base, "--data", world.folder / "corpus.jsonl", *FLAGS]
    assert build(*model, "--output", tmp_path / "stream", "--streaming", "--second-moments", "none") == 0
    assert build(*model, "--output", tmp_path / "whole", "--second-moments", "none") == 0
    one, two = (msif.GradientIndex.open(tmp_path / name) for name in ("stream", "whole"))
    assert one.places.keys() == two.places.keys()
    for digest, place in one.places.items():
        np.testing.assert_allclose(one.rows([place]), two.rows([two.places[digest]]), rtol=1e-2, atol=1e-4)
    monkeypatch.setattr("msif.index.scaling.ESTIMATED_FROM", 2)
    assert build(*model, "--output", tmp_path / "few", "--streaming") == 0
    manifest = json.loads((tmp_path / "few" / "manifest.json").read_text())
    all_of_them = json.loads((indexes / "trackstar" / "manifest.json").read_text())
    assert manifest["provenance"]["moments"] == "estimate" != manifest["run"]["moments"]
    assert manifest["run"]["moments"] != all_of_them["run"]["moments"]


def test_a_dry_run_tells_sizes(world, tmp_path, capfd):
    model = ["--model", world.base, "--data", world.folder / "corpus.jsonl", "--output", tmp_path / "index"]
    assert build(*model, "--dry-run", *FLAGS) == 0
    said = capfd.readouterr().out
    assert "features    64 of 4 blocks" in said and "on disk     1.0 kB for 8 documents" in said
    assert not (tmp_path / "index").exists()


def test_a_pair_is_asked_by_the_index_of_its_first_model(ask, indexes, world):
    both = ["--finetuned", world.tuned, "--method", "trackstar", "--index", indexes / "trackstar"]
    assert by_candidate(ask(*both, name="two")) != by_candidate(ask(*both[2:], name="one"))


def test_second_moments_of_a_trainers_folder(tmp_path, world):
    from helpers import documents

    from msif.data.documents import collate
    from msif.models.objectives import CausalLM

    model = save_lm(tmp_path / "model")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-9)
    batch = collate(documents([9, 7]))
    CausalLM().losses(CausalLM().outputs(model, batch), batch).sum().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "model" / "optimizer.pt")
    flags = ["--model", tmp_path / "model", "--data", world.folder / "corpus.jsonl", *FLAGS]
    assert build(*flags, "--output", tmp_path / "index") == 0
    manifest = json.loads((tmp_path / "index" / "manifest.json").read_text())
    assert manifest["provenance"]["moments"] == str(tmp_path / "model")
    near(save_lm(tmp_path / "other", hidden_size=16), tmp_path / "other")
    torch.save(optimizer.state_dict(), tmp_path / "other" / "optimizer.pt")
    other = ["--model", tmp_path / "other", "--data", world.folder / "corpus.jsonl", *FLAGS]
    assert build(*other, "--output", tmp_path / "odd", "--second-moments", "optimizer") == 2
