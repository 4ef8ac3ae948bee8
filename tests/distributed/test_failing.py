"""One process of several is killed in each pass, or makes a mistake: all end, one speaks, and the folder resumes."""

import json
import signal
import sys
import time

import pytest
import torch
from processes import DISTRIBUTED

sys.path.insert(0, str(DISTRIBUTED.parent / "cli"))
from worlds import FACTS, World, fit_factors, influence, near, save_lm, write_rows

from msif.curvature.store import FactorStore
from msif.distributed import ENDED

FAILING = DISTRIBUTED / "failing.py"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    near(save_lm(folder / "base"), folder / "tuned")
    write_rows(folder / "corpus.jsonl", [{"text": f"{text} {number}"} for number, text in enumerate(FACTS * 2)])
    return World(folder)


def said(output):
    return [line.removeprefix("error: ") for line in output.splitlines() if line.startswith(("error", "interrupted"))]


def close(one, other):
    assert set(one) == set(other)
    for name in one:
        here, there = one[name], other[name]
        torch.testing.assert_close(here.Lambda, there.Lambda, rtol=1e-3, atol=1e-5 * float(there.Lambda.max()))


def test_a_fit_is_killed_in_each_of_its_passes_and_ends_with_one_process(world, zygote):
    arguments = ["--model", world.folder / "base", "--data", world.folder / "corpus.jsonl", "--batch-tokens", 60]
    folder = world.folder / "killed"
    options = [*arguments, "--output", folder, "--checkpoint-every", 0, "--device", "cpu"]
    start = time.monotonic()
    killed_together(zygote, "covariance", "fit", *options)
    status, output = zygote.torchrun(2, FAILING, "mistake", "fit", *options)
    assert status == 1 and said(output) == ["a mistake in one process: mend it."], output
    assert output.count("resuming the covariance pass") == 1, output
    killed_together(zygote, "eigenvectors", "fit", *options)
    killed_together(zygote, "lambda", "fit", *options)
    assert time.monotonic() - start < 240  # nobody waits for a timeout
    assert json.loads((folder / "manifest.json").read_text())["parts"] == {"eigenvectors": True, "lambda": False}
    assert fit_factors(*options) == 0
    assert fit_factors(*arguments, "--output", world.folder / "whole") == 0
    close(FactorStore.open(folder), FactorStore.open(world.folder / "whole"))
    assert not list(folder.glob("*checkpoint*")) and not list(folder.glob(".*.part"))


def test_scores_of_a_killed_run_are_kept_for_any_number_of_processes(world, zygote):
    asked = ["--pretrained", world.folder / "base", "--finetuned", world.folder / "tuned", "--method", "gdp"]
    asked += ["--corpus", world.folder / "corpus.jsonl", "--query", "Where was Ada born?", "--completion", " Linz"]
    asked += ["--candidates", "all", "--batch-tokens", 60, "--device", "cpu"]
    folder = world.folder / "scores"
    killed_together(zygote, "scores", "influence", *asked, "--output", folder)
    assert list(folder.glob("partial.*-of-2.safetensors"))
    assert influence(*asked, "--output", folder) == 0
    assert influence(*asked, "--output", world.folder / "whole scores") == 0
    assert rows(folder) == pytest.approx(rows(world.folder / "whole scores"), rel=1e-4)
    assert not list(folder.glob("partial*"))


def killed_together(zygote, point, *arguments):
    """Without an agent between: the process that is left notices by itself."""
    (status, output), (other, _) = zygote.together(2, "failing.py", point, *arguments)
    assert status == 2 and said(output) == [ENDED] and other == -signal.SIGKILL, output


def rows(folder):
    import pyarrow.parquet as pq

    table = pq.read_table(folder / "scores.parquet").to_pylist()
    return {row["candidate_id"]: row["score"] for row in table}
