"""Every process scores by models that were moved, and all by the same moves."""

import sys

import pytest
from processes import DISTRIBUTED

sys.path.insert(0, str(DISTRIBUTED.parent / "cli"))
from worlds import FACTS, by_candidate, fit_factors, influence, near, save_lm, write_rows


def test_two_processes_score_by_moved_models_as_one_does(zygote, tmp_path):
    near(save_lm(tmp_path / "base"), tmp_path / "tuned")
    write_rows(tmp_path / "corpus.jsonl", [{"id": f"doc-{n}", "text": text} for n, text in enumerate(FACTS)])
    write_rows(tmp_path / "pairs.jsonl", [{"prompt": "Where was Ada born?", "completion": " Linz"}])
    asked = ["--corpus", tmp_path / "corpus.jsonl", "--query", "Where was Ada born?", "--completion", " Linz"]
    for name, which, data in (("base", "pretrained", "corpus"), ("tuned", "finetuned", "pairs")):
        fit = ["--model", tmp_path / name, "--data", tmp_path / f"{data}.jsonl", "--output", tmp_path / f"{name}-f"]
        assert fit_factors(*fit) == 0
        asked += [f"--{which}", tmp_path / name, f"--{which}-factors", tmp_path / f"{name}-f"]
    asked += ["--candidates", "all", "--batch-tokens", 60, "--device", "cpu"]
    near_by = [*asked, "--halves", 2, "--learning-rate-sum", 3, 3]
    assert influence(*asked, "--output", tmp_path / "plain") == 0
    assert influence(*near_by, "--output", tmp_path / "one") == 0
    for status, output in zygote.together(
        2, "failing.py", "nowhere", "influence", *near_by, "--output", tmp_path / "two"
    ):
        assert status == 0, output
    one = by_candidate(tmp_path / "one")
    assert by_candidate(tmp_path / "two") == pytest.approx(one, rel=1e-4)
    assert by_candidate(tmp_path / "plain") != pytest.approx(one, rel=1e-2)
