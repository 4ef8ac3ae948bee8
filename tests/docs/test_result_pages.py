"""A page of results begins with its answer: three sentences and a picture; long tables stay with the results."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = {
    "adapters": "adapters",
    "case-study": "case-study",
    "counterfactual": "counterfactual",
    "digits": "digits",
    "evidence": "evidence",
    "fact-tracing": "fact_tracing",
    "nearby": "nearby",
    "peers": "peers",
    "proximity": "proximity",
    "replaced-head": "replaced_head",
    "spearman": "spearman",
    "trackstar": "trackstar",
}
ROWS = 20


def parts_of(page):
    """Title, first paragraph, second one."""
    return (DOCS / f"{page}.md").read_text(encoding="utf-8").split("\n\n", 3)[:3]


@pytest.mark.parametrize("page", PAGES)
def test_it_begins_with_three_sentences_and_a_picture(page):
    title, answer, picture = parts_of(page)
    assert title.startswith("# ")
    assert len(re.split(r"(?<=[.?])\s+(?=[A-Z\[`])", answer.strip())) == 3
    (image,) = re.fullmatch(r"!\[[^]]+\]\((results/[^)]+)\)", picture).groups()
    assert (DOCS / image).is_file()


@pytest.mark.parametrize("page", PAGES)
def test_figures_of_the_answer_are_in_the_results(page):
    answer, folder = parts_of(page)[1], DOCS / "results" / PAGES[page]
    tables = "".join(file.read_text(encoding="utf-8") for file in folder.rglob("*.md"))
    assert not [figure for figure in re.findall(r"\d+\.\d+%?", answer) if figure not in tables]


@pytest.mark.parametrize("page", PAGES)
def test_tables_are_short_and_plots_are_vectors_where_there_are_any(page):
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    for table in re.findall(r"(?:^\|.*\n)+", text, re.M):
        assert table.count("\n") <= ROWS + 2, table.splitlines()[0]
    for image in re.findall(r"\]\((results/[^)]+\.png)\)", text):
        assert not (DOCS / image).with_suffix(".svg").exists(), image
