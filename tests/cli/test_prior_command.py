"""Search beside influence, by the command."""

import numpy as np
import pytest
from worlds import ALL, FACTS, QUERY, by_candidate, influence, scores, shown

from msif.candidates.bm25 import bm25_scores


def test_a_prior_is_added_to_influence(world, multi_stage, tmp_path):
    flags = [*world.pair, *world.factors, *QUERY, *ALL, "--top-k", 3]
    assert influence(*flags, "--prior", "bm25:0.7", "--output", tmp_path / "out") == 0
    table = {row["candidate_id"]: row for row in scores(tmp_path / "out").to_pylist()}
    plain = by_candidate(multi_stage)
    (words,) = bm25_scores(["Where was Ada born? Linz"], FACTS, progress=False)
    spread = np.std(list(plain.values()))
    for number, lexical in enumerate(words):
        row = table[f"doc-{number}"]
        assert row["influence"] == pytest.approx(plain[f"doc-{number}"], rel=1e-4, abs=1e-5 * spread)
        expected = row["influence"] / spread + 0.7 * lexical / np.std(words)
        assert row["score"] == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert [table[row["candidate_id"]]["rank"] for row in shown(tmp_path / "out") if row["kind"] == "proponent"] == [
        1,
        2,
        3,
    ]
    for document in shown(tmp_path / "out"):
        assert document["prior"] + sum(part for _, part in document["tokens"]) == pytest.approx(
            document["score"], abs=1e-4
        )
        assert document["prior"] + sum(document["blocks"].values()) == pytest.approx(document["score"], abs=1e-4)
    assert "influence" not in scores(multi_stage).column_names


def test_it_is_refused_before_work_where_it_is_none(world, refused):
    refused(influence, "write bm25:W", *world.pair, *world.factors, *QUERY, *ALL, "--prior", "bm25:x")
