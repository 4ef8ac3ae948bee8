"""Words in common with a query, and texts that say the same."""

import numpy as np

from msif.candidates.bm25 import BM25Selector
from msif.reporting.duplicates import near_duplicates
from msif.reporting.lexical import Overlap

TEXTS = [
    "Ada was born in Linz.",
    "The mill of Brno grinds rye.",
    "Ada moved to Graz and sold clocks; Ada, born late.",
    "Nothing in common here",
    "linz! Linz? LINZ",
    "日本の時計 Ada",
]


def test_ranks_are_those_by_which_candidates_are_chosen():
    queries = ["Where was Ada born? Linz", "日本"]
    overlap = Overlap(queries, ["Linz", " 日本"], TEXTS)
    for number, query in enumerate(queries):
        (best,) = BM25Selector(len(TEXTS), progress=False).select([query], TEXTS)
        found = overlap.of(number, range(len(TEXTS)))
        assert max(found, key=lambda row: found[row]["score"]) == best[0]
    found = overlap.of(0, [0, 1, 3])
    assert found[0]["rank"] == 1 and found[1]["rank"] is None and found[3]["words"] == []
    assert {word for word, _ in found[0]["words"]} == {"ada", "was", "born", "linz"}
    assert np.isclose(sum(part for _, part in found[0]["words"]), found[0]["score"], atol=0.01)
    assert overlap.occurrences == [2, 1] and overlap.documents == 6


def test_an_answer_without_words_is_not_looked_for():
    assert Overlap(["?", "a"], ["", "!!"], TEXTS).occurrences == [0, 0]


def test_near_duplicates_share_four_fifths():
    text = "one two three four five six seven eight nine ten eleven twelve thirteen"
    texts = [text, text.upper() + "!", text + " fourteen", " ".join(reversed(text.split())), "one", "One", "", ""]
    assert near_duplicates(texts) == [0, 0, 0, 3, 4, 4, 6, 6]


def test_texts_without_words_are_alike_if_their_signs_are():
    texts = ["!!!", "{ } ;", "\U0001f600", "", "!!!", "{ }\n;", "\U0001f601", " ", "+ - * / = + - * / =", "Ada"]
    assert near_duplicates(texts) == [0, 1, 2, 3, 0, 1, 6, 3, 8, 9]
