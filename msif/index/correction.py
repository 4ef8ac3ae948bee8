"""R^(−1/2): what makes common directions of gradients count less (Chang et al. 2024, arXiv 2410.17413, section 3.2).

R = λ R_eval + (1 − λ) R_train, block by block, each the mean of φφᵀ over queries and over documents. λ is given, or
such that the k-th largest eigenvalues of λ R_eval and (1 − λ) R_train are equal, over all blocks together.

Letters: D features of a document, K blocks of s features, Q queries.
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

# eigenvalues of a block's R are taken to be at least this share of their mean: where documents are fewer than features,
# what is stored in 16 bits has errors of a hundredth of it in directions that no document has
FLOOR = 1e-4
# eigenvalues below this share of the largest are zero
ZERO = 1e-6
# of 65,536 features: at which eigenvalues the two terms meet
MEETING = 1000 / 65536
# documents that R is taken from, for each feature of a block
DOCUMENTS_PER_FEATURE = 10


@dataclass(frozen=True)
class RSettings:
    """Which R.

    Attributes:
        kind: "none", "train" (λ = 0), or "mixed".
        mix: λ of "mixed", in [0, 1); None chooses it.
        dtype: of the decompositions.

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
        """From "none", "train", "mixed" or "mixed:0.9"."""
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


def second_moment(features: Tensor, columns: Sequence[slice], dtype: torch.dtype) -> list[Tensor]:
    """Of each block the mean of φφᵀ, (s, s), over the rows of (n, D)."""
    parts = [features[:, block].to(dtype) for block in columns]
    return [part.T @ part / len(features) for part in parts]


def moment_of_index(index: GradientIndex, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """R_train: over all documents, or evenly chosen ones where there are many; kept in the index's folder.

    Raises:
        MsifError: there is no document.
    """
    if not len(index):
        raise MsifError(f"the index in {index.path} holds no document to take R from: build it on some.")
    size = max(block.stop - block.start for block in index.columns)
    most = DOCUMENTS_PER_FEATURE * size
    places = None if len(index) <= most else np.arange(most) * len(index) // most
    file, identity = index.path / "R.safetensors", {"documents": str(len(index)), "dtype": str(dtype)}
    if file.is_file():
        tensors, found = load_tensors(file)
        if found == identity:
            return [tensors[str(number)] for number in range(len(index.columns))]
    total = [torch.zeros(one.stop - one.start, one.stop - one.start, dtype=dtype) for one in index.columns]
    count = 0
    for own, features in tqdm(index.chunks(places), desc="R", unit="chunk", disable=None):
        count += len(own)
        for sums, block in zip(total, index.columns, strict=True):
            part = features[:, block].to(dtype)
            sums.addmm_(part.T, part)
    result = [sums / count for sums in total]
    save_tensors(file, {str(number): one for number, one in enumerate(result)}, identity)
    return result


def meeting_mix(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """λ at which the k-th largest eigenvalues of λ R_eval and (1 − λ) R_train meet, k = 1000 of 65,536 features.

    Where R_eval has fewer eigenvalues above zero, because there are few queries, k is their number.

    Args:
        first, second: R_eval and R_train by block.
    """
    values = [
        torch.cat([torch.linalg.eigvalsh(block) for block in R]).sort(descending=True).values for R in (first, second)
    ]
    above = int((values[0] > ZERO * values[0][0]).sum())
    k = max(1, min(round(MEETING * len(values[0])), above)) - 1
    evaluated, trained = (float(found[k].clamp(min=0)) for found in values)
    return trained / (trained + evaluated) if trained + evaluated > 0 else 0.0


def inverse_root(R: Tensor) -> Tensor:
    """R^(−1/2), (s, s), of a symmetric positive matrix; its eigenvalues are no less than ``FLOOR`` of their mean.

    Raises:
        MsifError: R holds NaN or infinity, or is zero.
    """
    if not bool(R.isfinite().all()) or not bool(R.any()):
        raise MsifError("R is zero or not finite, so no gradient can be corrected by it: give --r none.")
    values, vectors = torch.linalg.eigh((R + R.T) / 2)
    roots = values.clamp(min=FLOOR * float(values.mean())).rsqrt()
    return (vectors * roots) @ vectors.T


@dataclass(frozen=True)
class Correction:
    """R^(−1/2) by block.

    Attributes:
        roots: (s, s) each; None is the identity.
        mix: λ that was taken.
    """

    columns: Sequence[slice]
    roots: Sequence[Tensor] | None = None
    mix: float = 0.0

    def apply(self, features: Tensor) -> Tensor:
        """R^(−1/2) φ of (n, D), in their dtype; it is its own transpose."""
        if self.roots is None:
            return features
        result = torch.empty_like(features)
        for block, root in zip(self.columns, self.roots, strict=True):
            result[:, block] = (features[:, block].to(root.dtype) @ root).to(features.dtype)
        return result


def correction_of(index: GradientIndex, settings: RSettings, queries: Tensor) -> Correction:
    """The correction that settings ask for; queries: (Q, D), whose mean of φφᵀ is R_eval."""
    if settings.kind == "none":
        return Correction(index.columns)
    train = moment_of_index(index, settings.dtype)
    if settings.kind == "train":
        return Correction(index.columns, [inverse_root(R) for R in train])
    evaluated = second_moment(queries.cpu(), index.columns, settings.dtype)
    mix = settings.mix if settings.mix is not None else meeting_mix(evaluated, train)
    mixed = [mix * one + (1 - mix) * two for one, two in zip(evaluated, train, strict=True)]
    return Correction(index.columns, [inverse_root(R) for R in mixed], mix)


def corrected_norms(index: GradientIndex, correction: Correction, places: np.ndarray | None = None) -> np.ndarray:
    """‖R^(−1/2) φ‖ of all documents, or of some, float32, by one pass over them."""
    if correction.roots is None:
        return index.norms if places is None else index.norms[places]
    if correction.mix == 0:  # no query takes part, so that they are the same for all
        kept = _norms_by_documents(index, correction)
        return kept if places is None else kept[places]
    return _norms(index, correction, places)


def _norms_by_documents(index: GradientIndex, correction: Correction) -> np.ndarray:
    """Of all documents; kept in the index's folder."""
    assert correction.roots is not None
    file = index.path / "norms.safetensors"
    identity = {
        "documents": str(len(index)),
        "R": f"{float(sum(root.double().sum() for root in correction.roots)):.12e}",
    }
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
