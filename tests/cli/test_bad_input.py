"""Mistakes in data and flags: exit status 2, one sentence, nothing half-written."""

import re
from pathlib import Path

import pytest
from worlds import (
    FACTS,
    call,
    config,
    fit_factors,
)


def test_files_that_are_missing_or_empty(fit, explain, data, tmp_path):
    fit(r"No such file or folder: '.*none\.jsonl'", data=tmp_path / "none.jsonl")
    fit("is empty", data=data("empty.jsonl", ""))
    fit("is empty|no rows", data=data("blank.jsonl", "\n\n"))
    fit("no rows", data=data("head.csv", "text\n"))
    (tmp_path / "folder").mkdir()
    fit("holds no data files", data=tmp_path / "folder")
    fit("Cannot tell the format", data=data("corpus.docx", "x"))
    explain(r"No such file or folder", corpus=tmp_path / "none.jsonl")
    explain(r"No such file or folder", query=None, completion=None, queries=tmp_path / "none.jsonl")
    explain("is empty", corpus=data("empty2.jsonl", ""))
    explain("is empty", query=None, completion=None, queries=data("empty3.jsonl", ""))


def test_fields_that_are_not_there(fit, explain, data):
    fit("has no field 'body': its fields are id, text", text_field="body")
    fit("has no field 'text': its fields are story", data=data("story.jsonl", [{"story": "x y"}]))
    fit("has no field 'answer'", prompt_field="text", completion_field="answer")
    fit("has no field 'label'", "--task", "classification")
    many = data("many.jsonl", [{f"f{n:02}": "x" for n in range(30)}])
    fit("its fields are f00, .*, f11, and 18 more; choose one with --text-field", data=many)
    fit("needs --task classification", label_field="text")
    fit("either --text-field, or --prompt-field", text_field="text", messages_field="m")
    explain("has no field 'body'", text_field="body")
    queries = data("q.jsonl", [{"question": "Who?"}])
    explain("need a field 'prompt'; their fields are question", query=None, completion=None, queries=queries)


@pytest.mark.parametrize("empty", ["", None, "  "])
def test_a_query_that_asks_nothing(explain, data, empty):
    queries = data("q.jsonl", [{"prompt": "Who?", "completion": " Ada"}, {"prompt": empty, "completion": " Ada"}])
    explain(r"row 1 of '.*q\.jsonl' is empty", query=None, completion=None, queries=queries)


@pytest.mark.parametrize("streaming", [[], ["--streaming"]])
def test_rows_that_all_have_nothing_to_predict(fit, explain, data, streaming):
    empty = data("empty.jsonl", [{"text": ""}, {"text": " "}])
    fit(r"Every row of '.*' is empty|Nothing can be predicted in any of the 2 rows", *streaming, data=empty)
    single = data("single.jsonl", [{"text": "x"}, {"text": ""}])
    fit("Nothing can be predicted in any of the 2 rows", *streaming, data=single)
    if not streaming:
        explain(r"Every row of '.*empty\.jsonl' is empty", corpus=empty)
        explain(r"Nothing can be predicted in any of the 2 rows that were read of '.*single\.jsonl'", corpus=single)


def test_a_line_that_does_not_parse_is_named_by_its_number(fit, explain, data):
    broken = data("broken.jsonl", '{"text": "one"}\n{"text": "two"}\n{"text": three}\n')
    fit(r"Line 3 of '.*broken\.jsonl' is not valid JSON", data=broken)
    fit(r"Line 3 of", "--streaming", data=broken)
    explain(r"Line 3 of '.*broken\.jsonl' is not valid JSON", corpus=broken)
    explain(r"Line 3 of", query=None, completion=None, queries=broken)


def test_a_completion_that_truncation_cut_off(fit, explain, data):
    pairs = data("pairs.jsonl", [{"prompt": "x" * 40, "completion": " y"}, {"prompt": "x" * 30, "completion": " y"}])
    fit("Truncation to 16 tokens leaves nothing to predict in any of the 2 rows", "--max-length", 16, data=pairs)
    explain("Truncation to 5 tokens cuts off the whole completion of query '0'", "--max-length", 5)
    queries = data("q.jsonl", [{"id": "long", "prompt": "x" * 40, "completion": " y"}])
    explain("completion of query 'long'", "--max-length", 16, query=None, completion=None, queries=queries)
    long = [
        {"id": name, "prompt": "x" * 40, "completion": completion} for name, completion in (("a", " y"), ("b", None))
    ]
    queries = data("q2.jsonl", long)
    message = "None of the 2 queries can be explained; of the first, 'a': Truncation to 16 tokens"
    explain(message, "--max-length", 16, query=None, completion=None, queries=queries)


def test_more_positions_than_a_model_has(fit, explain):
    fit("--max-length is 601, and .*base has 600 positions", "--max-length", 601)
    explain("--max-length is 601, and .*base has 600 positions", "--max-length", 601)


def test_labels_that_a_classifier_does_not_know(fit, world, data):
    rows = data("rows.jsonl", [{"text": "fine", "label": "odd"}, {"text": "bad", "label": "blue"}])
    fit(
        "label of row 1 .* is 'blue'.* its labels are calm, odd, loud",
        "--task",
        "classification",
        model=world.judge,
        data=rows,
    )
    rows = data("rows2.jsonl", [{"text": "fine", "label": 7}])
    fit("label of row 0 .* is 7", "--task", "classification", model=world.judge, data=rows)


def test_two_queries_of_one_id(explain, data):
    queries = data("q.jsonl", [{"id": 1, "prompt": "a b", "completion": " c"}] * 2)
    explain("Two queries in .* have the id '1'", query=None, completion=None, queries=queries)


def test_flags_that_are_wrong_or_contradict_each_other(explain, fit, world, refused, data):
    explain("there is no method 'magic': choose one of multi-stage", "--method", "magic")
    explain("--query-rank: '0' is not an integer of 1 or more", "--query-rank", 0)
    explain("--top-k: 'many' is not", "--top-k", "many")
    explain("Cannot read '--candidates nearest:5'", candidates="nearest:5")
    explain("Cannot read '--candidates knn:0'", candidates="knn:0")
    explain("either --query TEXT or --queries FILE", queries=world.folder / "pairs.jsonl")
    explain("either --query TEXT or --queries FILE", query=None, completion=None)
    queries = world.folder / "pairs.jsonl"
    explain("--completion belongs to --query", query=None, queries=queries)
    explain("--query is not UTF-8 text", query="Z\udcfcrich")
    explain("--completion is not UTF-8 text", completion=" Z\udcfcrich")
    explain("needs --pretrained and --finetuned", pretrained=None, pretrained_factors=None)
    explain("there is no model", pretrained=None, finetuned=None)
    classify = {"finetuned": world.judge, "finetuned_factors": world.judge_factors, "completion": "odd"}
    explain("which is no classifier", "--task", "classification", "--method", "single-stage", **classify)
    explain("the following arguments are required: --corpus", corpus=None)
    explain("invalid choice: 'regression'", "--task", "regression")
    explain("unrecognized arguments: --colour", "--colour", "red")
    explain("no classification head", "--task", "classification", completion="odd")
    fit("--seed: '-1' is not an integer of 0 or more", "--seed=-1")
    fit("--max-length: '0' is not", "--max-length", 0)
    fit("label samples must be 1", "--fisher", "empirical", "--label-samples", 2)
    refused(fit_factors, "the following arguments are required: --model, --data, --output")


def test_configurations_that_cannot_be_used(refused, fit, data, tmp_path, world):
    def config_of(text):
        return ["--config", data("config.yaml", text)]

    refused(fit_factors, "no configuration file", "--config", tmp_path / "none.yaml")
    fit("is not YAML", *config_of("model: [unclosed"))
    fit("holds no flags", *config_of("- a\n- b\n"))
    fit("unknown flag 'colour'", *config_of("colour: red\n"))
    fit(r"max_length in .*config\.yaml is wrong \('long' is not an integer", *config_of("max_length: long\n"))
    fit(r"max_length in .* is wrong", *config_of("max-length: -3\n"))
    fit(r"task in .* is 'regression': choose one of lm, classification", *config_of("task: regression\n"))
    fit(r"streaming in .* is 'perhaps': it must be true or false", *config_of("streaming: perhaps\n"))
    fit("is not YAML|cannot be read", *config_of("model: \x00\n"))


def test_an_embedding_model_that_does_not_exist(explain, tmp_path):
    explain("No such folder: embedding model", embedding_model=tmp_path / "none", candidates="knn:2")
    explain(
        "Cannot load embedding model 'no-such-embeddings'", embedding_model="no-such-embeddings", candidates="knn:2"
    )


def test_an_interruption_is_no_stack_trace(world, tmp_path, monkeypatch, capfd):
    from msif.curvature import fit

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(fit, "probe_inputs", interrupt)
    flags = ["--model", world.base, "--data", world.folder / "corpus.jsonl", "--output", tmp_path / "out"]
    assert fit_factors(*flags) == 130
    assert "run the same command again" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_other_errors_of_the_file_system(capfd):
    def main(_):
        Path("/no/such/file").read_text()

    assert call(main) == 2
    assert re.fullmatch(r"error: No such file or directory: /no/such/file; [^\n]+\n", capfd.readouterr().err)


def test_every_flag_has_a_line_of_help():
    from msif import fit_factors as one
    from msif import influence as other

    for parser in (one.parser(), other.parser()):
        for action in parser._actions:
            assert action.help and "\n" not in action.help, action.dest


def test_the_world_is_what_it_says():
    assert len(FACTS) == len(set(FACTS)) and config().vocab_size == 258


def test_a_blank_query_or_an_empty_completion_on_the_command_line(explain):
    for blank in ("   ", "\n", "\u3000"):
        explain("--query is blank: write a prompt", query=blank)
        explain("--query is blank: write a prompt", query=blank, completion=None)
    explain("--completion is empty: write the answer, or leave --completion out", completion="")
