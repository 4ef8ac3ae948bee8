"""Notebooks run from top to bottom, and what is committed of them is small and of no machine."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from experiments.notebook import LARGEST, executed, kept

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
NEEDED = ("nbclient", "ipykernel")


def outputs_of(notebook, kind="text/plain"):
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    return ["".join(output["data"][kind]) for output in outputs if kind in output.get("data", {})]


@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in NEEDED), reason="needs nbclient: pip install -e '.[dev]'"
)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_it_says(path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parents[1]))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = executed(path)
    pages = [html for html in outputs_of(found, "text/html") if html.startswith("<iframe")]
    assert len(pages) == 1 and "Where was Darna born in" in pages[0]
    (places,) = [json.loads(text) for text in outputs_of(found) if re.fullmatch(r"\[[\d, ]+\]", text)]
    assert len(places) == 8 and sorted(places)[3] < 10  # of forty; by chance twenty
    assert outputs_of(found, "image/svg+xml")
    assert not [text for text in outputs_of(kept(found), "text/html") if text.startswith("<iframe")]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_outputs_are_small_and_of_no_machine(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] == number for number, cell in enumerate(code, 1)), "run experiments.notebook"
    assert outputs_of(notebook, "text/html") and outputs_of(notebook, "image/svg+xml")
    for output in (output for cell in code for output in cell["outputs"]):
        text = json.dumps(output)
        assert len(text) < LARGEST and output.get("name") != "stderr"
        assert not re.search(r"/(home|root|tmp|work|var|Users)/", text)
