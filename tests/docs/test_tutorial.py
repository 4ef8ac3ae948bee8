"""The tutorial's blocks run in their order, and show what the text says."""

import importlib
import io
import json
import re
import shlex
from contextlib import redirect_stderr
from pathlib import Path

import pytest

from msif.cli.parsing import run

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorial.md"
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```", re.M | re.S)


def call(line):
    """A command of the page in this process: starting each anew would be most of the time."""
    words = shlex.split(line)
    assert words[:2] == ["python", "-m"], line
    said = io.StringIO()
    with pytest.raises(SystemExit) as end, redirect_stderr(said):
        run(importlib.import_module(words[2]).main, [*words[3:], "--quiet"])
    assert end.value.code == 0, line
    return said.getvalue()


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder in which the page was followed, and what its Python blocks left."""
    folder, names = tmp_path_factory.mktemp("tutorial"), {"__name__": "tutorial", "said": {}}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for kind, block in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
            if kind == "python":
                exec(compile(block, "tutorial.md", "exec"), names)
            elif "pip install" not in block:
                for line in block.strip().splitlines():
                    names["said"][line] = call(line)
        names["found"] = {run: names["places"](f"results/{run}") for run in ("all", "all-damped", "all-gdp")}
    return folder, names


def test_the_model_answers_what_it_was_not_fine_tuned_on(done):
    folder, names = done
    lines = (folder / "results" / "all" / "top.jsonl").read_text(encoding="utf-8").splitlines()
    answered = {shown["prompt"]: shown["completion"] for shown in map(json.loads, lines)}
    assert answered == {row["prompt"]: row["completion"] for row in names["questions"][30:]}


def test_each_fit_warns_as_the_page_says(done):
    fits = [said for line, said in done[1]["said"].items() if "msif.fit_factors" in line]
    assert len(fits) >= 2
    assert all("how much factors would still move with more data was not measured" in said for said in fits)


def test_sources_rank_well_above_chance(done):
    chance = 40  # of the first of two among 120
    for places in done[1]["found"].values():
        assert len(places) == 10 and sorted(places)[5] < chance / 2


def test_the_page_and_the_library_agree_with_the_command(done):
    folder, names = done
    page = (folder / "results" / "one" / "page.html").read_text(encoding="utf-8")
    assert "Where was Darbix born?" in page
    lines = (folder / "results" / "all" / "top.jsonl").read_text(encoding="utf-8").splitlines()
    best = next(shown for shown in map(json.loads, lines) if shown["rank"] == 1)
    assert names["result"].top(0, 1)[0].text == best["text"]
