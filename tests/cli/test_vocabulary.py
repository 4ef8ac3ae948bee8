"""Tokenizers with more tokens than their models, and padding tokens that cannot be looked up."""

import json
import shutil

import pytest
import torch
from transformers import AutoTokenizer
from worlds import ALL, QUERY, by_candidate, fit_factors, influence, save_classifier

from msif.errors import MsifError
from msif.models.loading import load_model


def grown(folder, *words, special=None):
    """The folder's tokenizer with words that its model does not know."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(list(words))
    if special:
        tokenizer.add_special_tokens(special)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def copied(world, tmp_path):
    def copy(name):
        return shutil.copytree(world.folder / name, tmp_path / name)

    return copy


def test_words_that_never_occur_do_no_harm(world, copied, tmp_path):
    model = grown(copied("base"), "Zanzibar", special={"pad_token": "[PAD]"})
    data = world.folder / "corpus.jsonl"
    assert fit_factors("--model", model, "--data", data, "--output", tmp_path / "f") == 0
    layer = "layers.0.safetensors"  # padding by a token beyond the embedding is no part of the result
    assert (tmp_path / "f" / layer).read_bytes() == (world.base_factors / layer).read_bytes()
    flags = ["--finetuned", model, "--corpus", data, "--method", "gdp", *QUERY, *ALL]
    assert influence(*flags, "--output", tmp_path / "out") == 0
    assert any(by_candidate(tmp_path / "out").values())


WHAT = r"the token 'Zanzibar' \(258\), and the model's embedding has 258 tokens where its tokenizer has 259"


def test_a_row_with_such_a_word(fit, explain, copied, data):
    model = grown(copied("base"), "Zanzibar")
    corpus = data("d.jsonl", [{"text": "Rain fell."}, {"text": "To Zanzibar by boat."}])
    fit(rf"In row 1 of '.*d\.jsonl' there is {WHAT}", model=model, data=corpus)
    flags = {"pretrained": model, "pretrained_factors": None, "finetuned_factors": None, "corpus": corpus}
    explain(rf"In row 1 of '.*d\.jsonl' there is {WHAT}", "--method", "gdp", **flags)


def test_a_query_with_such_a_word(explain, copied, world, data):
    model = grown(copied("tuned"), "Zanzibar")
    flags = {"finetuned": model, "pretrained_factors": None, "finetuned_factors": None}
    explain(f"In query '0' there is {WHAT}", "--method", "gdp", **{**flags, "query": "Where is Zanzibar?"})
    explain(f"In query '0' there is {WHAT}", "--method", "gdp", **{**flags, "completion": " Zanzibar"})
    asked = {**flags, "query": "Where is Zanzibar?", "completion": None}
    explain(f"there is {WHAT}", "--method", "gdp", **asked)  # the model is asked first
    queries = data("q.jsonl", [{"id": "a", "prompt": "x", "completion": "y"}, {"id": "b", "prompt": "Zanzibar"}])
    explain(f"there is {WHAT}", "--method", "gdp", **{**asked, "query": None, "queries": queries})


def test_a_classifier_with_such_a_word(fit, explain, copied, world, data):
    judge = grown(copied("judge"), "Zanzibar")
    rows = data("d.jsonl", [{"text": "To Zanzibar.", "label": 0}])
    fit(f"In row 0 .* there is {WHAT}", "--task", "classification", model=judge, data=rows)
    flags = {"finetuned": judge, "finetuned_factors": None, "pretrained_factors": None, "completion": None}
    task = ["--task", "classification", "--method", "gdp"]
    explain(f"there is {WHAT}", *task, **{**flags, "query": "Zanzibar"})


def test_a_stream_with_such_a_word(fit, copied, data):
    corpus = data("d.jsonl", [{"text": "Rain fell."}, {"text": "To Zanzibar by boat."}])
    fit(f"there is {WHAT}", "--streaming", model=grown(copied("base"), "Zanzibar"), data=corpus)


def test_models_in_python_refuse_it_too(copied):
    loaded = load_model(grown(copied("base"), "Zanzibar"), device="cpu")
    ids = torch.tensor([loaded.tokenizer("To Zanzibar")["input_ids"]])
    with pytest.raises(MsifError, match=WHAT):
        loaded.model(ids)
    assert loaded.model(ids[:, :2]).logits.isfinite().all()


@pytest.mark.parametrize("pad", [-1, 258, 99999])
def test_padding_tokens_that_cannot_be_looked_up(world, copied, tmp_path, pad):
    """A language model's is never read; a classifier's is its tokenizer's."""
    for name, task, data in (("base", "lm", "corpus.jsonl"), ("judge", "classification", "labels.jsonl")):
        model = copied(name)
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps({**config, "pad_token_id": pad}))
        flags = ["--model", model, "--task", task, "--data", world.folder / data]
        assert fit_factors(*flags, "--output", tmp_path / f"{name}_factors") == 0
        layer = "layers.0.safetensors"
        expected = (world.folder / f"{name}_factors" / layer).read_bytes()
        assert (tmp_path / f"{name}_factors" / layer).read_bytes() == expected


def test_a_classifier_that_knows_no_padding_token(fit, explain, tmp_path, data):
    save_classifier(tmp_path / "judge", pad=False, pad_token_id=-1)
    rows = data("d.jsonl", [{"text": "Rain fell.", "label": 0}, {"text": "x", "label": 1}])
    fit(r"no padding token.*tokenizer\.pad_token", "--task", "classification", model=tmp_path / "judge", data=rows)
    grown(tmp_path / "judge", special={"pad_token": "[PAD]"})
    match = r"padding token of .*judge' \('\[PAD\]', 258\) is beyond its 258 embeddings"
    fit(match, "--task", "classification", model=tmp_path / "judge", data=rows)


def test_a_vocabulary_with_a_basis_of_its_own(world, fit, tmp_path):
    """All three bases run through both commands; two models that differ in it leave the map out, and say so."""
    scores = {}
    for basis in ("identity", "blocks:6", "dense"):
        for name, data in (("base", "corpus.jsonl"), ("tuned", "pairs.jsonl")):
            flags = ["--model", world.folder / name, "--data", world.folder / data, "--vocabulary-basis", basis]
            factors = tmp_path / f"{name}-{basis[0]}"
            assert fit_factors(*flags, "--modules", "maps", "--output", factors) == 0
        pair = ["--pretrained-factors", tmp_path / f"base-{basis[0]}", "--finetuned-factors", factors]
        out = tmp_path / basis[0]
        assert influence(*world.pair, *pair, *QUERY, *ALL, "--output", out) == 0
        scores[basis] = by_candidate(out)
    assert len({tuple(found.values()) for found in scores.values()}) == 3
    odd = ["--pretrained-factors", tmp_path / "base-i", "--finetuned-factors", tmp_path / "tuned-b"]
    assert influence(*world.pair, *odd, *QUERY, *ALL, "--output", tmp_path / "odd") == 0
    left_out = json.loads((tmp_path / "odd" / "manifest.json").read_text())["left_out"]
    split = "split into 6 block(s) in the query's (fine-tuned) model"
    assert left_out == {"lm_head": f"{split}, otherwise into 1 in the candidates' (pre-trained) model"}
    fit("vocabulary basis is 'rows'", "--vocabulary-basis", "rows")
    fit("258 rows, which blocks:4 does not divide", "--modules", "maps", "--vocabulary-basis", "blocks:4")
