"""R^(−1/2): what makes common directions of gradients count less (Chang et al. 2024, arXiv 2410.17413, section 3.2).

R = λ R_eval + (1 − λ) R_train, block by block, each the mean of φφᵀ over queries and over documents. λ is given, or
such that the k-th largest eigenvalues of λ R_eval and (1 − λ) R_train are equal, over all blocks together.

Scores depend on R⁻¹ alone, so that any W with WᵀW = R⁻¹ will do for its root: here the inverse of R's Cholesky factor,
which takes a twentieth of an eigendecomposition's time. A share of R's mean eigenvalue is added to its diagonal.

Letters: D features of a document, s of a block, Q queries, N documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from msif.curvature.store import load_tensors, save_tensors
from msif.errors import MsifError
from msif.index.storage import GradientIndex

# of a block's mean eigenvalue, added to all: where documents are fewer than features, what is stored in 16 bits has
# errors of a hundredth of it in directions that no document has
FLOOR = 1e-4
# of 65,536 features: at which eigenvalues the two terms meet
MEETING = 1000 / 65536
# eigenvalues below this share of the largest are zero
ZERO = 1e-6
# documents that R is taken from, for each feature of a block
DOCUMENTS_PER_FEATURE = 10


@dataclass(frozen=True)
class RSettings:
    """Which R.

    Attributes:
        kind: "none", "train" (λ = 0), or "mixed".
        mix: λ of "mixed", in [0, 1); None chooses it.
        dtype: of sums and factors; in float64 a block of 64 × 64 takes 134 MB.

    Raises:
        MsifError: a value that is none of these.
    """

    kind: str = "mixed"
    mix: float | None = None
    dtype: torch.dtype = torch.float64

    def __post_init__(self) -> None:
        if self.kind not in ("none", "train", "mixed"):
            raise MsifError(f"R is {self.kind!r}: choose none, train, mixed, or mixed:LAMBDA.")
        if self.mix is not None and not 0 <= self.mix < 1:
            raise MsifError(f"λ of R is {self.mix:g}: it must be 0 or more, and below 1.")

    @classmethod
    def parse(cls, text: str) -> RSettings:
        """From "none", "train", "mixed" or "mixed:0.9".

        Raises:
            MsifError: anything else.
        """
        kind, colon, number = text.partition(":")
        if not colon:
            return cls(kind)
        try:
            mix = float(number)
        except ValueError:
            mix = -1.0
        if kind != "mixed" or not 0 <= mix < 1:
            raise MsifError(f"R is {text!r}: choose none, train, mixed, or mixed:LAMBDA with LAMBDA in [0, 1).")
        return cls(kind, mix)


@dataclass(frozen=True)
class Moment:
    """The mean of φφᵀ over n rows.

    Attributes:
        blocks: (s, s) each.
        values: their eigenvalues above zero together, descending.
    """

    blocks: Sequence[Tensor]
    values: Tensor


def moment_of(features: Tensor, columns: Sequence[slice], dtype: torch.dtype) -> Moment:
    """R_eval, of (Q, D)."""
    parts = [features[:, block].to(dtype) for block in columns]
    blocks = [part.T @ part / len(features) for part in parts]
    return Moment(blocks, _descending([part / len(features) ** 0.5 for part in parts], blocks))


def _descending(parts: Sequence[Tensor], blocks: Sequence[Tensor]) -> Tensor:
    """Eigenvalues of partᵀ part; of the smaller Gram matrix where rows are fewer than features."""
    grams = [part @ part.T if len(part) < len(block) else block for part, block in zip(parts, blocks, strict=True)]
    values = torch.cat([torch.linalg.eigvalsh(gram) for gram in grams]).sort(descending=True).values
    return values[values > ZERO * values[0]]


def moment_of_index(index: GradientIndex, dtype: torch.dtype = torch.float64) -> Moment:
    """R_train: over all documents, or evenly chosen ones where there are many; kept in the index's folder.

    Raises:
        MsifError: there is no document.
    """
    if not len(index):
        raise MsifError(f"the index in {index.path} holds no document to take R from: build it on some.")
    sizes = [block.stop - block.start for block in index.columns]
    most = DOCUMENTS_PER_FEATURE * max(sizes)
    if len(index) < max(sizes):
        return moment_of(index.rows(range(len(index))), index.columns, dtype)
    file, identity = index.path / "R.safetensors", {"documents": str(len(index))}
    if file.is_file():
        tensors, found = load_tensors(file)
        if found == identity:
            return Moment([tensors[str(k)].to(dtype) for k in range(len(sizes))], tensors["values"].to(dtype))
    places = None if len(index) <= most else np.arange(most) * len(index) // most
    total, count = [torch.zeros(size, size, dtype=dtype) for size in sizes], 0
    with tqdm(desc="R", unit="doc", total=min(most, len(index)), disable=None) as progress:
        for own, features in index.chunks(places):
            count += len(own)
            for sums, block in zip(total, index.columns, strict=True):
                part = features[:, block].to(dtype)
                sums.addmm_(part.T, part)
            progress.update(len(own))
    for sums in total:
        sums /= count
    moment = Moment(total, _descending(total, total))
    kept = {str(number): block.float() for number, block in enumerate(moment.blocks)}
    save_tensors(file, {**kept, "values": moment.values.float()}, identity)
    return moment


def meeting_mix(evaluated: Moment, trained: Moment, width: int) -> float:
    """λ at which the k-th largest eigenvalues of λ R_eval and (1 − λ) R_train meet, k = 1000 of 65,536 features.

    Where either has fewer eigenvalues above zero, because there are few queries or documents, k is their number.
    """
    k = max(1, min(round(MEETING * width), len(evaluated.values), len(trained.values))) - 1
    first, second = float(evaluated.values[k]), float(trained.values[k])
    return second / (first + second)


@dataclass(frozen=True)
class Correction:
    """W with WᵀW = R⁻¹, by block.

    Attributes:
        roots: (s, s) each, lower triangular; None is the identity.
        mix: λ that was taken.
    """

    columns: Sequence[slice]
    roots: Sequence[Tensor] | None = None
    mix: float = 0.0

    def apply(self, features: Tensor) -> Tensor:
        """W φ of (n, D), in their dtype."""
        return self._times(features, transposed=False)

    def transposed(self, features: Tensor) -> Tensor:
        """Wᵀ φ, so that ⟨Wᵀ a, b⟩ = ⟨a, W b⟩."""
        return self._times(features, transposed=True)

    def _times(self, features: Tensor, transposed: bool) -> Tensor:
        if self.roots is None:
            return features
        result = torch.empty_like(features)
        for block, root in zip(self.columns, self.roots, strict=True):
            W = root if transposed else root.T
            result[:, block] = (features[:, block].to(root.dtype) @ W).to(features.dtype)
        return result


def correction_of(index: GradientIndex, settings: RSettings, queries: Tensor) -> Correction:
    """The correction that settings ask for; queries: (Q, D), whose mean of φφᵀ is R_eval.

    Raises:
        MsifError: R is zero, or not finite.
    """
    if settings.kind == "none":
        return Correction(index.columns)
    trained = moment_of_index(index, settings.dtype)
    if settings.kind == "train":
        return Correction(index.columns, [inverse_factor(R) for R in trained.blocks])
    evaluated = moment_of(queries.cpu(), index.columns, settings.dtype)
    mix = meeting_mix(evaluated, trained, index.width) if settings.mix is None else settings.mix
    roots = [
        inverse_factor(one * mix + two * (1 - mix)) for one, two in zip(evaluated.blocks, trained.blocks, strict=True)
    ]
    return Correction(index.columns, roots, mix)


def inverse_factor(R: Tensor) -> Tensor:
    """L⁻¹, (s, s), of R + floor = L Lᵀ.

    Raises:
        MsifError: R holds NaN or infinity, or is zero.
    """
    mean = R.diagonal().mean()
    if not bool(R.isfinite().all()) or not float(mean) > 0:
        raise MsifError("R is zero or not finite, so no gradient can be corrected by it: give --r none.")
    damped = R.clone()
    damped.diagonal().add_(FLOOR * mean)
    factor, failed = torch.linalg.cholesky_ex(damped)
    if int(failed):
        raise MsifError("R cannot be factored in this dtype: use float64.")
    return torch.linalg.solve_triangular(factor, torch.eye(len(R), dtype=R.dtype), upper=False)


def corrected_norms(index: GradientIndex, correction: Correction, places: np.ndarray | None = None) -> np.ndarray:
    """‖W φ‖ of all documents, or of some, float32, by one pass over them."""
    if correction.roots is None:
        return index.norms if places is None else index.norms[places]
    if correction.mix == 0:  # no query takes part, so that they are the same for all
        kept = _norms_by_documents(index, correction)
        return kept if places is None else kept[places]
    return _norms(index, correction, places)


def _norms_by_documents(index: GradientIndex, correction: Correction) -> np.ndarray:
    """Of all documents; kept in the index's folder."""
    assert correction.roots is not None
    file, total = index.path / "norms.safetensors", float(sum(root.double().abs().sum() for root in correction.roots))
    identity = {"documents": str(len(index)), "R": f"{total:.6e}"}
    if file.is_file():
        tensors, found = load_tensors(file)
        if found == identity:
            return tensors["norms"].numpy()
    norms = _norms(index, correction, None)
    save_tensors(file, {"norms": torch.from_numpy(norms)}, identity)
    return norms


def _norms(index: GradientIndex, correction: Correction, places: np.ndarray | None) -> np.ndarray:
    found = np.zeros(len(index), dtype=np.float32)
    total = len(index) if places is None else len(places)
    with tqdm(desc="norms", unit="doc", total=total, disable=None) as progress:
        for own, features in index.chunks(places):
            found[own] = correction.apply(features).norm(dim=1).numpy()
            progress.update(len(own))
    return found if places is None else found[places]
