"""Eigenvectors of covariances, also where the first algorithm fails."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.linalg
import torch

from msif.curvature.factors import eigendecompose
from msif.curvature.inputs import device_and_dtype
from msif.errors import MsifError


def covariance(*shape, dtype=torch.float64):
    X = torch.randn(*shape, 2 * shape[-1], dtype=torch.float64)
    return (X @ X.transpose(-1, -2)).to(dtype)


def assert_decomposed(matrix, values, vectors, tolerance=1e-9):
    assert values.shape == matrix.shape[:-1] and vectors.shape == matrix.shape
    assert values.dtype == vectors.dtype == matrix.dtype and vectors.is_contiguous()
    assert (values.diff(dim=-1) >= 0).all()
    again = vectors @ torch.diag_embed(values) @ vectors.transpose(-1, -2)
    assert (again - matrix).abs().max() <= tolerance * matrix.abs().max()
    identity = vectors.transpose(-1, -2) @ vectors
    assert (identity - torch.eye(matrix.shape[-1], dtype=matrix.dtype)).abs().max() < tolerance


def fails(*_, **__):
    raise torch.linalg.LinAlgError("linalg.eigh: The algorithm failed to converge")


def gives_nan(matrix):
    return matrix.new_full(matrix.shape[:-1], float("nan")), torch.full_like(matrix, float("nan"))


MATRICES = {
    "one": lambda: covariance(6, 6),
    "blocks": lambda: covariance(3, 4, 4),
    "float32": lambda: covariance(5, 5, dtype=torch.float32),
    "rank one": lambda: torch.outer(torch.arange(4.0), torch.arange(4.0)).double(),
    "zero": lambda: torch.zeros(4, 4, dtype=torch.float64),
    "equal eigenvalues": lambda: torch.eye(5, dtype=torch.float64) * 3,
    "tiny": lambda: covariance(4, 4) * 1e-200,
    "wide range": lambda: torch.diag(torch.logspace(-20, 20, 9, dtype=torch.float64)),
}


@pytest.mark.parametrize("kind", MATRICES)
@pytest.mark.parametrize("broken", [None, fails, gives_nan], ids=["as it is", "no convergence", "NaN"])
def test_every_matrix_by_either_algorithm(kind, broken, monkeypatch, caplog):
    matrix = MATRICES[kind]()
    if broken:
        monkeypatch.setattr(torch.linalg, "eigh", broken)
    with caplog.at_level(logging.INFO, "msif"):
        values, vectors = eigendecompose(matrix, "layers.0.mlp")
    assert_decomposed(matrix, values, vectors, 1e-5 if matrix.dtype == torch.float32 else 1e-9)
    assert ("'layers.0.mlp' do not converge; they are computed by QR iteration" in caplog.text) == bool(broken)


def test_neither_algorithm(monkeypatch):
    monkeypatch.setattr(torch.linalg, "eigh", fails)

    def neither(*_, **__):
        raise np.linalg.LinAlgError("the eigenvalue algorithm failed to converge")

    monkeypatch.setattr(scipy.linalg, "eigh", neither)
    with pytest.raises(MsifError, match=r"covariance of module 'layers.0.mlp' do not converge: leave it out with"):
        eigendecompose(covariance(4, 4), "layers.0.mlp")


def test_memory_that_runs_out_is_no_lack_of_convergence(monkeypatch):
    def full(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 80 bytes")

    monkeypatch.setattr(torch.linalg, "eigh", full)
    with pytest.raises(RuntimeError, match="allocate"):
        eigendecompose(covariance(4, 4), "m")


@pytest.mark.gpu
@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, torch.linalg.LinAlgError])
def test_a_gpu_that_fails_is_replaced_by_the_cpu(error, monkeypatch):
    eigh = torch.linalg.eigh

    def only_on_cpu(matrix):
        if matrix.is_cuda:
            raise error("cusolver error: CUSOLVER_STATUS_EXECUTION_FAILED")
        return eigh(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", only_on_cpu)
    matrix = covariance(5, 5)
    values, vectors = eigendecompose(matrix.cuda(), "m")
    assert values.is_cuda and vectors.is_cuda
    assert_decomposed(matrix, values.cpu(), vectors.cpu())


def test_a_fit_goes_on(problem, finished, tmp_path, monkeypatch):
    """Factors by the other algorithm are the same up to signs, so EK-FAC's answers are."""
    monkeypatch.setattr(torch.linalg, "eigh", fails)
    store = problem.fit(tmp_path / "factors")
    for name, factors in store.items():
        torch.testing.assert_close(factors.S_A, finished[name].S_A)
        torch.testing.assert_close(factors.Lambda.sum(), finished[name].Lambda.sum(), rtol=1e-6, atol=0)


def test_a_model_on_a_device_without_float64():
    weight = SimpleNamespace(device=torch.device("mps"), dtype=torch.float32)
    with pytest.raises(MsifError, match=r"Device 'mps' has no float64.*model\.to\('cpu'\)"):
        device_and_dtype(SimpleNamespace(parameters=lambda: iter([weight])))


@pytest.mark.parametrize("shape", [(90, 90), (3, 40, 40)])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_float32_sums_are_decomposed_in_float32(shape, scale, monkeypatch):
    matrix = covariance(*shape, dtype=torch.float32) * scale
    seen, eigh = [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda m: seen.append(m.dtype) or eigh(m))
    values, vectors = eigendecompose(matrix, "m")
    assert seen == [torch.float32] and values.dtype == vectors.dtype == torch.float32
    A, Q, S = matrix.double(), vectors.double(), values.double()
    assert (A @ Q - Q * S[..., None, :]).norm() < 3e-6 * A.norm()
    assert (Q.transpose(-1, -2) @ Q - torch.eye(shape[-1]).double()).norm() < 3e-6 * matrix.shape[-1]


@pytest.mark.parametrize("wrong", ["values", "vectors", "angles"])
def test_eigenvectors_that_are_not_accurate_are_computed_again_in_float64(wrong, monkeypatch):
    """One of 30 is off by 1e-3."""
    matrix = covariance(30, 30, dtype=torch.float32)
    seen, eigh = [], torch.linalg.eigh

    def poor(m):
        seen.append(m.dtype)
        values, vectors = eigh(m)
        if m.dtype == torch.float32:
            if wrong == "values":
                values[-1] *= 1.001
            elif wrong == "vectors":
                vectors[:, -1] *= 1.001
            else:
                vectors[:, -1] += 1e-3 * vectors[:, 0]
        return values, vectors

    monkeypatch.setattr(torch.linalg, "eigh", poor)
    values, vectors = eigendecompose(matrix, "m")
    assert seen == [torch.float32, torch.float64]
    assert_decomposed(matrix, values, vectors, 1e-6)
