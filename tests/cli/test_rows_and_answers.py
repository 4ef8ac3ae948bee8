"""Rows and queries that cannot take part leave the others alone; answers are the model's own tokens."""

import json
import re
import shutil

import pytest
from transformers import AutoTokenizer, GPTNeoXForCausalLM
from worlds import ALL, FACTS, QUERY, by_candidate, fit_factors, influence, scores, shown, write_rows

import msif
from msif.candidates.embedding import PACKAGED_MODEL

PAIRS = [{"prompt": "Where was Ada born?", "completion": " Linz"}, {"prompt": "What is late?", "completion": " I"}]
CHATML = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
EMPTY = {
    "texts": ([{"text": text} for text in FACTS], [{"text": ""}, {"text": None}, {"text": " "}, {"text": "x"}]),
    "pairs": (PAIRS, [{"prompt": "Who?", "completion": ""}, {"prompt": None, "completion": None}]),
}


def same_factors(left, right):
    files = sorted(file.name for file in left.glob("*.safetensors"))
    return bool(files) and all((left / name).read_bytes() == (right / name).read_bytes() for name in files)


@pytest.mark.parametrize("streaming", [[], ["--streaming"]], ids=["in memory", "streaming"])
@pytest.mark.parametrize("kind", EMPTY)
def test_a_fit_passes_over_rows_with_nothing_to_predict(world, tmp_path, caplog, kind, streaming):
    rows, empty = EMPTY[kind]
    for name, data in (("clean", rows), ("gaps", [*rows, *empty])):
        corpus = write_rows(tmp_path / f"{name}.jsonl", data)
        flags = ["--model", world.base, "--data", corpus, "--output", tmp_path / name, "--max-length", 32]
        assert fit_factors(*flags, *streaming) == 0
    assert same_factors(tmp_path / "clean", tmp_path / "gaps")
    said = [line for line in caplog.messages if "skipped" in line]  # once, though a fit goes over its data twice
    assert len(said) == 1
    assert re.search(rf"{len(empty)} rows of '.*gaps.jsonl' are skipped.* first is row {len(rows)}$", said[0])
    cut = [line for line in caplog.messages if "are cut at --max-length 32" in line]
    assert len(cut) == (2 if kind == "texts" else 0)  # of each corpus


def test_a_fit_passes_over_completions_that_are_cut_off(world, tmp_path, caplog):
    long = {"prompt": "x" * 40, "completion": " y"}
    for name, data in (("clean", PAIRS), ("long", [*PAIRS, long])):
        corpus = write_rows(tmp_path / f"{name}.jsonl", data)
        flags = ["--model", world.base, "--data", corpus, "--output", tmp_path / name, "--max-length", 32]
        assert fit_factors(*flags) == 0
    assert same_factors(tmp_path / "clean", tmp_path / "long")
    (said,) = caplog.messages
    assert re.search("1 row of .* is skipped, since --max-length 32 cuts off .* the first is row 2$", said)


@pytest.mark.parametrize("spec", ["all", "bm25:8", "knn:8"])
def test_candidates_with_nothing_to_predict_have_no_scores(world, tmp_path, caplog, multi_stage, spec):
    if spec.startswith("knn"):
        pytest.importorskip(PACKAGED_MODEL)
    rows = [{"id": f"doc-{n}", "text": text} for n, text in enumerate(FACTS)]
    rows[2:2] = [{"id": f"gap-{n}", "text": text} for n, text in enumerate(["", None, " \n", "x"])]
    corpus = write_rows(tmp_path / "gaps.jsonl", rows)
    models = ["--pretrained", world.base, "--finetuned", world.tuned, "--corpus", corpus, *world.factors]
    assert influence(*models, *QUERY, "--candidates", spec, "--output", tmp_path / "out") == 0
    values = by_candidate(tmp_path / "out")
    assert all(name.startswith("doc-") for name in values)
    assert values == pytest.approx({name: by_candidate(multi_stage)[name] for name in values}, rel=1e-4, abs=1e-6)
    assert len(values) == (len(FACTS) if spec == "all" else pytest.approx(len(FACTS), abs=1))
    rows_of = {row["candidate_id"]: row["row"] for row in scores(tmp_path / "out").to_pylist()}
    assert all(rows[row]["id"] == name for name, row in rows_of.items())
    count, kind = (4, "are skipped") if spec == "all" else (3, "no candidates")
    assert sum(bool(re.search(f"{count} .*rows of .*{kind}.* first is row 2$", line)) for line in caplog.messages) == 1


@pytest.fixture(scope="module")
def terse(world, tmp_path_factory):
    """The fine-tuned model, which ends its text at once where it would begin with a certain letter."""
    folder = tmp_path_factory.mktemp("terse") / "model"
    shutil.copytree(world.tuned, folder)
    model, tokenizer = GPTNeoXForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prompts = ["Who?", "What is late?", "Where was Ada born?", "Why?", "A", "B", "C"]
    first = [int(model(**tokenizer(prompt, return_tensors="pt")).logits[0, -1].argmax()) for prompt in prompts]
    ended = first[0]
    settings = {"eos_token_id": [1, ended], "num_beams": 3, "num_return_sequences": 2, "repetition_penalty": 9.0}
    (folder / "generation_config.json").write_text(json.dumps({**settings, "stop_strings": ["e"], "max_length": 4}))
    return folder, prompts[0], next(prompt for prompt, token in zip(prompts, first, strict=True) if token != ended)


def test_a_query_without_an_answer_leaves_the_others_alone(world, terse, tmp_path, caplog):
    model, silent, answered = terse
    flags = ["--pretrained", world.base, "--finetuned", model, "--corpus", world.folder / "corpus.jsonl"]
    flags += [*ALL, "--method", "gdp", "--max-new-tokens", 3, "--max-length", 30]
    rows = [
        {"id": "silent", "prompt": silent},
        {"id": "fine", "prompt": answered},
        {"id": "long prompt", "prompt": "x" * 30},
        {"id": "cut off", "prompt": "x" * 40, "completion": " y"},
        {"id": "no token to predict", "prompt": answered, "completion": ""},
        {"id": "given", "prompt": "Who?", "completion": " Ada"},
    ]
    queries = write_rows(tmp_path / "q.jsonl", rows)
    assert influence(*flags, "--queries", queries, "--output", tmp_path / "out") == 0
    ids = ["fine", "given", "no token to predict"]
    assert sorted(set(scores(tmp_path / "out")["query_id"].to_pylist())) == ids  # an empty completion asks for one
    reasons = {
        "silent": "the model answers nothing to 'Who",
        "long prompt": "the prompt has 30 tokens, and --max-length 30",
        "cut off": "Truncation to 30 tokens cuts off the whole completion of query 'cut off'",
    }
    said = [line for line in caplog.messages if "is left out" in line]
    assert len(said) == len(reasons)
    for name, reason in reasons.items():
        assert sum(line.startswith(f"query '{name}' is left out: {reason}") for line in said) == 1
    queries = write_rows(tmp_path / "fewer.jsonl", [row for row in rows if row["id"] in ("fine", "given")])
    assert influence(*flags, "--queries", queries, "--output", tmp_path / "fewer") == 0
    for name in ("fine", "given"):
        alone = by_candidate(tmp_path / "fewer", name)
        assert by_candidate(tmp_path / "out", name) == pytest.approx(alone, rel=1e-4, abs=1e-6)


def test_answers_that_are_cut_in_part_are_told_once(world, tmp_path, caplog):
    flags = ["--finetuned", world.tuned, "--corpus", world.folder / "corpus.jsonl", *ALL, "--method", "gdp"]
    rows = [
        {"id": "given", "prompt": "?" * 16, "completion": " Ada, of Linz"},
        {"id": "whole", "prompt": "Who?", "completion": " Ada"},
        {"id": "own", "prompt": "Where was Ada born?"},
    ]
    length = 21  # letters are tokens
    queries = write_rows(tmp_path / "q.jsonl", rows)
    flags += ["--max-new-tokens", 4, "--max-length", length]
    assert influence(*flags, "--queries", queries) == 0
    said = [line for line in caplog.messages if "is cut at" in line]
    assert said == [
        f"query '{name}' is cut at --max-length {length}: {kept} of {total} tokens of its answer are explained"
        for name, kept, total in (("given", 5, 13), ("own", 2, 4))
    ]
    caplog.clear()
    stage = msif.Stage(world.tuned, world.folder / "corpus.jsonl", max_length=length)
    msif.attribute(stage, rows[:2], "all", method="gdp")
    assert [line for line in caplog.messages if "is cut at" in line] == said[:1]


def test_a_model_that_answers_nothing_to_any_query(world, terse, explain, data):
    model, silent, _ = terse
    given = {"finetuned": model, "pretrained_factors": None, "finetuned_factors": None, "completion": None}
    explain("error: the model answers nothing to 'Who", "--method", "gdp", **given, query=silent)
    queries = data("q.jsonl", [{"id": name, "prompt": silent} for name in "ab"])
    message = "None of the 2 queries can be explained; of the first, 'a': the model answers nothing"
    explain(message, "--method", "gdp", **given, query=None, queries=queries)


@pytest.fixture(scope="module")
def chatty(world, tmp_path_factory):
    """The pair with a chat template and a tokenizer that puts a token before each text, and one behind it."""
    folder = tmp_path_factory.mktemp("chatty")
    for name in ("base", "tuned"):
        shutil.copytree(world.folder / name, folder / name)
        tokenizer = AutoTokenizer.from_pretrained(folder / name)
        from tokenizers import processors

        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<pad> $A </s>", special_tokens=[("<pad>", 0), ("</s>", 1)]
        )
        tokenizer.bos_token = "<pad>"
        tokenizer.chat_template = "{{ bos_token }}" + CHATML
        tokenizer.save_pretrained(folder / name)
    flags = ["--pretrained", folder / "base", "--finetuned", folder / "tuned", "--method", "gdp", *ALL]
    return [*flags, "--corpus", world.folder / "corpus.jsonl", "--max-new-tokens", 3]


def test_conversations_are_asked_and_explained(chatty, tmp_path):
    user, rendered = {"role": "user", "content": "Who?"}, "<pad><user>Who?</s><assistant>"
    rows = [
        {"id": "asked", "messages": [user]},
        {"id": "rendered", "prompt": rendered},
        {"id": "given", "messages": [user, {"role": "assistant", "content": "Ada"}]},
        {"id": "given as text", "prompt": rendered, "completion": "Ada</s>"},
    ]
    queries = write_rows(tmp_path / "q.jsonl", rows)
    assert influence(*chatty, "--queries", queries, "--output", tmp_path / "out") == 0
    asked, text, given, as_text = (by_candidate(tmp_path / "out", row["id"]) for row in rows)
    assert asked == pytest.approx(text, rel=1e-4, abs=1e-6)  # one beginning token each
    assert given == pytest.approx(as_text, rel=1e-4, abs=1e-6)
    documents = {document["query_id"]: document for document in shown(tmp_path / "out")}
    assert (documents["asked"]["prompt"], documents["given"]["completion"]) == ("Who?", "Ada")
    assert documents["asked"]["completion"] == documents["rendered"]["completion"] != ""


def test_a_tokenizer_that_ends_texts_does_not_end_prompts(chatty, tmp_path):
    """With its end token behind the prompt the model would go on from there, and the answer be another."""
    rows = [{"id": "own", "prompt": "Who?"}]
    queries = write_rows(tmp_path / "q.jsonl", rows)
    assert influence(*chatty, "--queries", queries, "--output", tmp_path / "own") == 0
    answer = shown(tmp_path / "own")[0]["completion"]
    model, tokenizer = GPTNeoXForCausalLM.from_pretrained(chatty[3]), AutoTokenizer.from_pretrained(chatty[3])
    ids = tokenizer("<pad>Who?", add_special_tokens=False, return_tensors="pt")["input_ids"]
    out = model.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
    assert answer == tokenizer.decode(out)
    assert influence(*chatty, "--query", "Who?", "--completion", answer, "--output", tmp_path / "given") == 0
    assert by_candidate(tmp_path / "given") == pytest.approx(by_candidate(tmp_path / "own", "own"), rel=1e-4, abs=1e-6)


def test_an_answer_is_tokenised_again_for_a_model_with_other_tokens(world, tmp_path, caplog):
    """Measured on the pre-trained model, whose tokenizer knows no "xx"."""
    shutil.copytree(world.tuned, tmp_path / "tuned")
    file = tmp_path / "tuned" / "tokenizer.json"
    description = json.loads(file.read_text())
    vocabulary = description["model"]["vocab"]
    vocabulary["xx"] = vocabulary.pop("ÿ")
    description["model"]["merges"] = [["x", "x"]]
    file.write_text(json.dumps(description))
    rows = [
        {"id": name, "prompt": prompt} for name, prompt in (("short", "Axx?"), ("long", "x" * 30), ("same", "Who?"))
    ]
    queries = write_rows(tmp_path / "q.jsonl", rows)
    flags = ["--pretrained", world.base, "--finetuned", tmp_path / "tuned", "--corpus", world.folder / "corpus.jsonl"]
    flags += [*ALL, "--method", "single-stage", "--pretrained-factors", world.base_factors, "--max-length", 20]
    assert influence(*flags, "--queries", queries, "--max-new-tokens", 3, "--output", tmp_path / "out") == 0
    assert "1 answers are tokenised again, by the tokenizer of the model they are measured on" in caplog.messages
    assert sum("query 'long' is left out: Truncation to 20 tokens" in line for line in caplog.messages) == 1
    answer = next(document["completion"] for document in shown(tmp_path / "out") if document["query_id"] == "short")
    assert influence(*flags, "--query", "Axx?", "--completion", answer, "--output", tmp_path / "given") == 0
    again = by_candidate(tmp_path / "given")
    assert by_candidate(tmp_path / "out", "short") == pytest.approx(again, rel=1e-4, abs=1e-6)
    assert set(by_candidate(tmp_path / "out", "same")) == set(again)


def test_messages_that_the_template_does_not_take_are_refused_before_work(chatty, world, tmp_path, refused):
    tokenizer = AutoTokenizer.from_pretrained(chatty[3])
    tokenizer.chat_template = "{{ raise_exception('no system here') }}"
    shutil.copytree(chatty[3], tmp_path / "strict")
    tokenizer.save_pretrained(tmp_path / "strict")
    queries = write_rows(tmp_path / "q.jsonl", [{"prompt": "Who?"}, {"messages": [{"role": "system", "content": "x"}]}])
    flags = ["--finetuned", tmp_path / "strict", "--corpus", world.folder / "corpus.jsonl", *ALL, "--method", "gdp"]
    message = r"does not take the messages of query '1' \(no system here\)"
    refused(influence, message, *flags, "--queries", queries, "--output", tmp_path / "out")
    flags[1] = world.tuned
    refused(influence, "has no chat template", *flags, "--queries", queries, "--output", tmp_path / "out")
