"""The proximity experiment on a tiny pair, from the command line to its files."""

import json

import pytest
from pairs import save_pair

from experiments.proximity import __main__ as command
from msif.errors import MsifError
from msif.fit_factors import main as fit_factors


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = save_pair(tmp_path_factory.mktemp("proximity") / "pair")
    data = ["--data", str(folder / "data" / "corpus.jsonl"), "--quiet"]
    fit_factors(["--model", str(folder / "pretrained"), *data, "--output", str(folder / "factors")])
    return folder


def run(pair, *more):
    models = ["--pretrained", str(pair / "pretrained"), "--finetuned", str(pair / "finetuned")]
    command.main([*models, *map(str, more)])


def tables(folder):
    found = json.loads((folder / "proximity.json").read_text(encoding="utf-8"))
    return {table["title"].split(",")[0]: table["rows"] for table in found["tables"]}


def test_two_models_alone(pair, tmp_path):
    run(pair, "--output", tmp_path)
    report = tmp_path / "report"
    assert sorted(path.name for path in report.iterdir()) == [
        f"proximity.{kind}" for kind in ("json", "md", "png", "svg")
    ]
    by_layer, by_kind = tables(report).values()
    assert [row["layer"] for row in by_layer] == ["0", "1", "outside", "all"]
    assert all(0 < row["q"] < 2 for row in by_layer if row["layer"] != "outside")
    whole = by_kind[-1]
    assert whole["kind"] == "all" and whole["parameters"] == sum(row["parameters"] for row in by_kind[:-1])
    assert whole["‖θ_ft − θ_pt‖"] ** 2 == pytest.approx(sum(row["‖θ_ft − θ_pt‖"] ** 2 for row in by_kind[:-1]))


def test_with_factors_and_data(pair, tmp_path):
    data = ["--pretrained-factors", pair / "factors", "--data-file", pair / "data" / "corpus.jsonl", "--examples", 7]
    run(pair, *data, "--results", tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".md", ".png", ".svg"} and len(
        list(tmp_path.iterdir())
    ) == 8
    found = tables(tmp_path)
    shares = found["Share of ‖θ_ft − θ_pt‖² in the eigen-directions of largest Λ"]
    assert shares[-1]["kind"] == "all" and all(
        0 <= row["top 1%"] <= row["top 10%"] <= row["top 50%"] <= 1 for row in shares
    )
    assert shares[-1]["½ΔᵀHΔ"] == pytest.approx(sum(row["½ΔᵀHΔ"] for row in shares[:-1]))
    (way,) = [rows for title, rows in found.items() if title.startswith("Increase of the pre-trained model's loss")]
    assert [row["t"] for row in way] == ["0.05", "0.1", "0.25", "0.5", "0.75", "1", "fine-tuned, all parameters"]
    end = way[-2]
    assert end["½t²ΔᵀHΔ, EK-FAC"] == pytest.approx(shares[-1]["½ΔᵀHΔ"])
    # what is left at a small step is of the third order
    small = way[0]
    assert abs(small["measured"] - small["t gᵀΔ"] - small["½t²Δᵀ∇²LΔ"]) < 0.1 * abs(small["measured"])
    assert way[2]["½t²ΔᵀHΔ, exact"] == pytest.approx(end["½t²ΔᵀHΔ, exact"] / 16)
    assert " 7 texts" in (tmp_path / "proximity.md").read_text(encoding="utf-8")


def test_wrong_inputs_are_one_sentence(pair, tmp_path):
    def said(*more):
        with pytest.raises(MsifError) as raised:
            run(pair, "--output", tmp_path / "out", *more)
        return str(raised.value)

    assert "give --pretrained-factors too" in said("--data-file", pair / "data" / "corpus.jsonl")
    assert "no folder of factors" in said("--pretrained-factors", tmp_path / "none")
    assert "does not exist" in said("--finetuned", tmp_path / "none")
    swapped = ["--pretrained", pair / "finetuned", "--pretrained-factors", pair / "factors"]
    assert "have changed since" in said(*swapped)
    assert not (tmp_path / "out").exists()
