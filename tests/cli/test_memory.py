"""Memory that runs out: one sentence that names --batch-tokens, and what was computed is kept."""

import errno
import re

import pytest
import torch
from safetensors.torch import load_file
from worlds import ALL, FACTS, QUERY, by_candidate, fit_factors, influence

from msif.attribution.contributions import _ContributionPass
from msif.attribution.partial import PARTIAL
from msif.attribution.scoring import ScorePass
from msif.curvature.covariance import CovariancePass
from msif.curvature.eigenvalues import LambdaPass
from msif.errors import is_out_of_memory
from msif.models.capture import Capture

CPU = "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"
FULL = {
    "CUDA": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has 79 GiB in total"),
    "an older CUDA": RuntimeError("CUDA error: out of memory"),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "CPU": RuntimeError(CPU),
    "Windows": RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 80 bytes."),
    "Python": MemoryError(),
    "NumPy": MemoryError("Unable to allocate 8.00 GiB for an array with shape (1073741824,)"),
    "C++": RuntimeError("std::bad_alloc"),
    "the system": OSError(errno.ENOMEM, "Cannot allocate memory"),
}


@pytest.mark.parametrize("kind", FULL)
def test_what_libraries_say(kind):
    assert is_out_of_memory(FULL[kind])


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes cannot be multiplied"), ValueError("out of memory"), OSError(errno.ENOENT, "No")]
)
def test_other_mistakes(error):
    assert not is_out_of_memory(error)


def runs_out(monkeypatch, where, method, error, after=0):
    """Has the call number ``after`` of a pass's method fail."""
    original, calls = getattr(where, method), []

    def failing(self, *arguments):
        calls.append(1)
        if len(calls) > after:
            raise error
        return original(self, *arguments)

    monkeypatch.setattr(where, method, failing)


@pytest.mark.parametrize("kind", FULL)
def test_a_fit_before_anything_is_done(fit, monkeypatch, kind):
    runs_out(monkeypatch, CovariancePass, "backward", FULL[kind])
    fit(r"ran out: give a smaller --batch-tokens \(now 8192\), or fewer --modules\.\n")


def test_a_fit_that_was_half_done(world, monkeypatch, tmp_path, capfd):
    flags = ["--model", world.base, "--data", world.folder / "corpus.jsonl", "--batch-tokens", 64]
    flags += ["--checkpoint-every", 0]
    assert fit_factors(*flags, "--output", tmp_path / "whole") == 0
    capfd.readouterr()
    for where in (CovariancePass, LambdaPass):
        with monkeypatch.context() as patch:
            runs_out(patch, where, "begin", FULL["CUDA"], after=3)
            assert fit_factors(*flags, "--output", tmp_path / "f") == 2
        said = capfd.readouterr().err
        assert re.fullmatch(
            r"error: the GPU's memory ran out: give a smaller --batch-tokens \(now 64\), or fewer --modules, with "
            r"another --output; \S+ keeps what is done, and the same command goes on from it\.\n",
            said,
        )
        assert load_file(tmp_path / "f" / "checkpoint.safetensors")
    assert fit_factors(*flags, "--output", tmp_path / "f") == 0
    for file in tmp_path.glob("whole/*.safetensors"):
        assert (tmp_path / "f" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("kind", FULL)
def test_scoring_before_anything_is_scored(explain, monkeypatch, kind):
    runs_out(monkeypatch, ScorePass, "backward", FULL[kind])
    explain(r"ran out: give a smaller --batch-tokens \(now 8192\), a --query-rank, or fewer queries at once\.\n")


@pytest.mark.parametrize(("method", "before", "after"), [("gdp", 100, 40), ("gdp", 40, 100), ("multi-stage", 40, 100)])
def test_scoring_that_was_half_done(world, monkeypatch, tmp_path, capfd, method, before, after):
    """What is scored is kept, and the run goes on from it in batches of another size."""
    flags = [*world.pair, *QUERY, *ALL, "--method", method, *(world.factors if method == "multi-stage" else [])]
    assert influence(*flags, "--output", tmp_path / "whole") == 0
    capfd.readouterr()
    with monkeypatch.context() as patch:
        # three documents are in the midst of a larger batch
        runs_out(patch, ScorePass, "begin", FULL["CUDA"], after=2 if before == 100 else 3)
        assert influence(*flags, "--batch-tokens", before, "--output", tmp_path / "out") == 2
    said = capfd.readouterr().err
    assert re.search(r"keeps the scores so far, from which the same command goes on with any --batch-tokens\.\n$", said)
    kept = len(load_file(tmp_path / "out" / PARTIAL)["rows"])
    assert 3 <= kept < len(FACTS)
    scored = []
    begin = ScorePass.begin
    monkeypatch.setattr(ScorePass, "begin", lambda self, b, o: (scored.append(len(b)), begin(self, b, o))[1])
    assert influence(*flags, "--batch-tokens", after, "--output", tmp_path / "out") == 0
    assert len(FACTS) - kept <= sum(scored) < len(FACTS)
    expected = by_candidate(tmp_path / "whole")
    largest = max(map(abs, expected.values()))
    assert by_candidate(tmp_path / "out") == pytest.approx(expected, rel=1e-4, abs=1e-5 * largest)
    assert not (tmp_path / "out" / PARTIAL).exists()


def test_the_keyboard_leaves_what_is_scored(world, monkeypatch, tmp_path):
    flags = [*world.pair, *QUERY, *ALL, "--method", "gdp", "--batch-tokens", 40]
    with monkeypatch.context() as patch:
        runs_out(patch, ScorePass, "begin", KeyboardInterrupt(), after=2)
        assert influence(*flags, "--output", tmp_path / "out") == 130
    assert len(load_file(tmp_path / "out" / PARTIAL)["rows"]) >= 2


def test_projections_have_a_size_of_their_own(explain, monkeypatch):
    from msif.attribution.features import GradientProjector

    runs_out(monkeypatch, GradientProjector, "__call__", FULL["CPU"])
    given = {"pretrained_factors": None, "finetuned_factors": None}
    explain("a --projection-size, or fewer queries", "--method", "logra", **given)


def test_explaining_keeps_the_scores(world, tmp_path, monkeypatch, capsys):
    runs_out(monkeypatch, _ContributionPass, "backward", FULL["CPU"])
    assert influence(*world.pair, *world.factors, *QUERY, *ALL, "--output", tmp_path / "out") == 2
    assert "memory ran out: give a smaller --batch-tokens" in capsys.readouterr().err
    assert (tmp_path / "out" / "scores.parquet").exists()


def test_a_dry_run(explain, fit, monkeypatch):
    runs_out(monkeypatch, Capture, "run", FULL["CPU"])
    explain("memory ran out: give a smaller --batch-tokens", "--dry-run")
    fit("memory ran out: give a smaller --batch-tokens", "--dry-run")
