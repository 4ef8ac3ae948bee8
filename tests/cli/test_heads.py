"""Both commands on regression heads, reward models and classifiers with several labels a text."""

import logging

import pytest
import torch
from helpers import dense_gradients
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from worlds import ALL, FACTS, assert_sums, by_candidate, fit_factors, influence, save_classifier, shown, write_rows

from msif.models.select import track_modules

MULTI = "multi_label_classification"
REWARD = {"num_labels": 1, "id2label": {0: "LABEL_0"}, "label2id": {"LABEL_0": 0}}
KINDS = {
    # what the model is, and the labels of its data
    "reward": (REWARD, [n / 3 for n in range(8)]),
    "scores": (
        {"num_labels": 2, "problem_type": "regression", "id2label": {0: "u", 1: "v"}, "label2id": {"u": 0, "v": 1}},
        [[n / 3, 1.0 - n] for n in range(8)],
    ),
    "topics": ({"problem_type": MULTI}, [[["odd"], ["calm", "loud"], [], ["loud"]][n % 4] for n in range(8)]),
}


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """For each kind a model, its data and its factors."""
    folder = tmp_path_factory.mktemp("heads")
    for kind, (settings, labels) in KINDS.items():
        save_classifier(folder / kind, **settings)
        write_rows(folder / f"{kind}.jsonl", [{"text": t, "label": y} for t, y in zip(FACTS, labels, strict=True)])
        flags = ["--task", "classification", "--model", folder / kind, "--data", folder / f"{kind}.jsonl"]
        assert fit_factors(*flags, "--output", folder / f"{kind}_factors") == 0
    return folder


@pytest.fixture
def ask(world, heads, tmp_path):
    """The exit status of a run on one kind of head, and its folder of results."""

    def run(kind, *flags, method="multi-stage", name="out"):
        pair = ["--pretrained", world.base, "--finetuned", heads / kind, "--corpus", world.folder / "corpus.jsonl"]
        factors = ["--pretrained-factors", world.base_factors, "--finetuned-factors", heads / f"{kind}_factors"]
        rest = [*(factors if method == "multi-stage" else []), "--task", "classification", "--method", method, *ALL]
        return influence(*pair, *rest, *flags, "--output", tmp_path / name), tmp_path / name

    return run


@pytest.fixture(scope="module")
def losses(world):
    """The gradients of the documents' losses by autograd, over the maps that all models have."""
    lm, tokenizer = AutoModelForCausalLM.from_pretrained(world.base), AutoTokenizer.from_pretrained(world.base)
    lm, found = lm.double().eval(), []
    for text in FACTS:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        log_p = lm(input_ids=ids).logits[0, :-1].log_softmax(-1)
        found.append(dense_gradients(lm, track_modules(lm, "layers"), -log_p.gather(1, ids[0, 1:, None]).sum()))
    return tokenizer, found


def dense(losses, heads, kind, measure):
    """⟨∇m(q), ∇L(z)⟩ over the maps that both models have, by autograd."""
    head = AutoModelForSequenceClassification.from_pretrained(heads / kind).double().eval()
    tokenizer, found = losses
    ids = torch.tensor([tokenizer("Rain fell")["input_ids"]])
    query = dense_gradients(head, track_modules(head, "layers"), measure(head(input_ids=ids).logits[0]))
    return {
        f"doc-{number}": sum((loss[name] * query[name]).sum().item() for name in loss)
        for number, loss in enumerate(found)
    }


def squared(outputs, *label):
    return (outputs - torch.tensor(label)).square().sum()


def entropy(outputs, *label):
    return torch.nn.functional.binary_cross_entropy_with_logits(
        outputs, torch.tensor(label).to(outputs), reduction="sum"
    )


@pytest.mark.parametrize(
    ("kind", "flags", "measure"),
    [
        ("reward", ["--completion", "2.5"], lambda f: squared(f, 2.5)),
        ("reward", [], lambda f: -f.sum()),
        ("reward", ["--completion", "2.5", "--measurement", "logit"], lambda f: -f.sum()),
        ("scores", ["--completion", "[1, 2.5]"], lambda f: squared(f, 1.0, 2.5)),
        ("scores", [], lambda f: -f.sum()),
        ("topics", ["--completion", "odd"], lambda f: entropy(f, 0, 1, 0)),
        ("topics", ["--completion", '["odd", "loud"]'], lambda f: entropy(f, 0, 1, 1)),
        ("topics", ["--completion", "[0, 1, 1]"], lambda f: entropy(f, 0, 1, 1)),
        ("topics", ["--completion", "[]"], lambda f: entropy(f, 0, 0, 0)),
        ("topics", [], lambda f: entropy(f, *(f > 0))),
        ("topics", ["--completion", "odd", "--measurement", "margin"], lambda f: f[0] - f[1] + f[2]),
    ],
)
def test_scores_are_those_of_autograd(ask, losses, heads, kind, flags, measure):
    status, out = ask(kind, "--query", "Rain fell", *flags, method="gdp")
    assert status == 0
    expected = dense(losses, heads, kind, measure)
    assert max(map(abs, expected.values())) > 1e-3
    assert by_candidate(out) == pytest.approx(expected, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tour(ask, kind, capfd):
    """With both inverses, and with a solver on the head's own data; answers are in words and in the files."""
    status, out = ask(kind, "--query", "Rain fell", "--top-k", 2)
    assert status == 0 and any(by_candidate(out).values())
    assert_sums(shown(out))
    label = shown(out)[0]["label"]
    assert isinstance(label, {"reward": float, "scores": list, "topics": list}[kind])
    word = "value" if kind != "topics" else "class"
    assert word in capfd.readouterr().out and word in (out / "page.html").read_text()
    status, solved = ask(kind, "--query", "Rain fell", "--ihvp", "ekfac-cg", "--ihvp-iterations", 3, name="solved")
    assert status == 0 and by_candidate(solved) != by_candidate(out)


def test_one_head_alone(heads, tmp_path):
    for kind in KINDS:
        flags = ["--finetuned", heads / kind, "--finetuned-factors", heads / f"{kind}_factors"]
        data = ["--corpus", heads / f"{kind}.jsonl", "--task", "classification", "--method", "single-stage", *ALL]
        assert influence(*flags, *data, "--query", FACTS[1], "--output", tmp_path / kind) == 0
        assert any(by_candidate(tmp_path / kind).values())


def test_a_file_of_queries(ask, tmp_path):
    rows = [{"id": "a", "text": "Rain fell", "label": 2.5}, {"id": "b", "text": "x", "label": -1}]
    status, out = ask("reward", "--queries", write_rows(tmp_path / "q.jsonl", rows))
    assert status == 0 and any(by_candidate(out, "b").values())
    rows = [{"id": "a", "text": "Rain fell", "label": ["odd"]}, {"id": "b", "text": "x", "label": []}]
    status, out = ask("topics", "--queries", write_rows(tmp_path / "r.jsonl", rows), name="topics")
    assert status == 0 and by_candidate(out, "a") != by_candidate(out, "b")


def test_which_loss_is_taken_is_said(heads, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "msif"):
        from msif.models.loading import load_model
        from msif.models.roles import objective_for

        objective_for("classification", load_model(heads / "reward", "classification"))
    assert "reward: one output and no problem_type in its config.json: taken for a regression" in caplog.text


@pytest.mark.parametrize(
    ("kind", "flags", "match"),
    [
        ("reward", ["--completion", "good"], "label of query '0' is 'good'; the model is a regression"),
        ("reward", ["--measurement", "loss"], "query '0' has no label, and the loss of a regression's own output"),
        ("reward", ["--measurement", "margin"], "unknown measurement 'margin': Regression has 'loss' or 'logit'"),
        ("scores", ["--completion", "1.5"], r"is 1 number\(s\), and the model has 2 output\(s\)"),
        ("topics", ["--completion", "odd, calm"], "is 'odd, calm', which the model does not know"),
        ("topics", ["--completion", "3"], "label of query '0' is 3"),
    ],
)
def test_answers_that_a_head_cannot_give(explain, heads, monkeypatch, kind, flags, match):
    monkeypatch.setattr("msif.job.Job.score", None)  # before any work
    given = {"finetuned": heads / kind, "finetuned_factors": heads / f"{kind}_factors", "completion": None}
    explain(match, "--task", "classification", *flags, query="Rain fell", **given)


def test_queries_of_which_some_have_a_number(explain, heads, data):
    rows = [{"id": "a", "text": "Rain fell", "label": 2.5}, {"id": "b", "text": "x"}]
    given = {"finetuned": heads / "reward", "finetuned_factors": heads / "reward_factors", "completion": None}
    queries = data("q.jsonl", rows)
    explain("query 'b' has no label", "--task", "classification", query=None, queries=queries, **given)


def test_trak_has_no_margin_of_a_number(explain, heads, monkeypatch):
    monkeypatch.setattr("msif.job.Job.score", None)
    given = {"finetuned": heads / "reward", "pretrained_factors": None, "finetuned_factors": None}
    flags = ["--task", "classification", "--method", "trak"]
    explain("unknown measurement 'margin'", *flags, query="Rain fell", **{**given, "completion": "1.5"})


@pytest.mark.parametrize(
    ("kind", "labels", "match"),
    [
        ("reward", ["good", "bad"], "label of row 0 of .* is 'good'; the model is a regression"),
        ("scores", [1.0, 2.0], r"label of row 0 .* is 1 number\(s\), and the model has 2"),
        ("topics", [[0], [5]], "label of row 1 .* is 5, which the model does not know"),
        ("topics", [["odd"], ["none"]], "label of row 1 .* is 'none'"),
    ],
)
def test_data_that_a_head_was_not_trained_on(fit, heads, data, kind, labels, match):
    rows = [{"text": f"text {n}", "label": label} for n, label in enumerate(labels)]
    fit(match, "--task", "classification", model=heads / kind, data=data("d.jsonl", rows))


def test_labels_in_csv(heads, tmp_path):
    files = {
        "reward": "text,label\nRain fell,3.5\nA goat,-1\n",
        "topics": 'text,label\nRain fell,odd\nA goat,"[0, 2]"\nLinz,"[\'calm\']"\nGraz,"[0, 0, 1]"\n',
    }
    for kind, content in files.items():
        (tmp_path / f"{kind}.csv").write_text(content)
        flags = ["--task", "classification", "--model", heads / kind, "--data", tmp_path / f"{kind}.csv"]
        assert fit_factors(*flags, "--output", tmp_path / kind) == 0


def test_a_classifier_of_several_labels_that_does_not_say_so(fit, world, data):
    rows = [{"text": "Rain fell", "label": ["odd", "calm"]}]
    fit("is a list.*problem_type", "--task", "classification", model=world.judge, data=data("d.jsonl", rows))
