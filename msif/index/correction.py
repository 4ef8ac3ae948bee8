"""R^(−1/2): what makes common directions of gradients count less (Chang et al. 2024, arXiv 2410.17413, section 3.2).

R = λ R_eval + (1 − λ) R_train, block by block, each the mean of φφᵀ over queries and over documents. λ is given, or
such that the k-th largest eigenvalues of λ R_eval and (1 − λ) R_train are equal, over all blocks together.

Letters: D features of a document, s of a block, Q queries, N documents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from msif.curvature.store import load_tensors, save_tensors
from msif.errors import MsifError
from msif.index.roots import CholeskyRoot, FewRoot, Root
from msif.index.storage import GradientIndex
from msif.progress import progress

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
        rows: of each block φ/√n, (n, s); None where n is s or more.
        blocks: (s, s) each; None where there are rows.
        values: the eigenvalues above zero of all blocks together, descending.
    """

    values: Tensor
    rows: Sequence[Tensor] | None = None
    blocks: Sequence[Tensor] | None = None

    def block(self, number: int) -> Tensor:
        if self.blocks is not None:
            return self.blocks[number]
        assert self.rows is not None
        return self.rows[number].T @ self.rows[number]


def moment_of(features: Tensor, columns: Sequence[slice], dtype: torch.dtype) -> Moment:
    """Of (n, D)."""
    rows = [features[:, block].to(dtype) / len(features) ** 0.5 for block in columns]
    if len(features) < min(block.stop - block.start for block in columns):
        return Moment(_descending([part @ part.T for part in rows]), rows)
    blocks = [part.T @ part for part in rows]
    return Moment(_descending(blocks), None, blocks)


def _descending(grams: Sequence[Tensor]) -> Tensor:
    """
    Raises:
        MsifError: some sum is NaN or infinite.
    """
    if not all(bool(gram.isfinite().all()) for gram in grams):
        raise MsifError("R is not finite, for some feature is not: build the index again with --store bfloat16.")
    values = torch.cat([torch.linalg.eigvalsh(gram) for gram in grams]).sort(descending=True).values
    return values[values > ZERO * values[:1]]


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
            return _kept(tensors, dtype)
    places = None if len(index) <= most else np.arange(most) * len(index) // most
    total, count = [torch.zeros(size, size, dtype=dtype) for size in sizes], 0
    with progress(desc="R", unit="doc", total=min(most, len(index))) as bar:
        for own, features in index.chunks(places):
            count += len(own)
            for sums, block in zip(total, index.columns, strict=True):
                part = features[:, block].to(dtype)
                sums.addmm_(part.T, part)
            bar.update(len(own))
    for sums in total:
        sums /= count
    kept = {"values": _descending(total).float(), **{str(number): block.float() for number, block in enumerate(total)}}
    save_tensors(file, kept, identity)
    return _kept(kept, dtype)


def _kept(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Moment:
    """R_train as its file has it: in fewer digits than its sums, so that the first question is answered by the same."""
    blocks = [tensors[str(number)].to(dtype) for number in range(len(tensors) - 1)]
    return Moment(tensors["values"].to(dtype), None, blocks)


def meeting_mix(evaluated: Moment, trained: Moment, width: int) -> float:
    """λ at which the k-th largest eigenvalues of λ R_eval and (1 − λ) R_train meet, k = 1000 of 65,536 features.

    Where either has fewer eigenvalues above zero, because there are few queries or documents, k is their number. Where
    all queries are zero, and so all scores, λ is 0.

    Raises:
        MsifError: all documents are zero.
    """
    if not len(trained.values):
        raise MsifError("no document has a gradient that is not zero, so that there is no R: give --r none.")
    if not len(evaluated.values):
        return 0.0
    k = max(1, min(round(MEETING * width), len(evaluated.values), len(trained.values))) - 1
    first, second = float(evaluated.values[k]), float(trained.values[k])
    return second / (first + second)


@dataclass(frozen=True)
class Correction:
    """W with WᵀW = R⁻¹, by block.

    Attributes:
        roots: of each block; None is the identity.
        mix: λ that was taken.
        trace: of R, by which it is known again.
    """

    columns: Sequence[slice]
    roots: Sequence[Root] | None = None
    mix: float = 0.0
    trace: float = 0.0

    def apply(self, features: Tensor) -> Tensor:
        """W φ of (n, D), in their dtype."""
        return self._each(features, lambda root, part: root.apply(part))

    def transposed(self, features: Tensor) -> Tensor:
        """Wᵀ φ, so that ⟨Wᵀ a, b⟩ = ⟨a, W b⟩."""
        return self._each(features, lambda root, part: root.transposed(part))

    def _each(self, features: Tensor, work: Callable[[Root, Tensor], Tensor]) -> Tensor:
        if self.roots is None:
            return features
        result = torch.empty_like(features)
        for block, root in zip(self.columns, self.roots, strict=True):
            result[:, block] = work(root, features[:, block].to(root.dtype)).to(features.dtype)
        return result


def correction_of(index: GradientIndex, settings: RSettings, queries: Tensor) -> Correction:
    """The correction that settings ask for; queries: (Q, D), whose mean of φφᵀ is R_eval.

    Raises:
        MsifError: R is zero, or not finite.
    """
    if settings.kind == "none":
        return Correction(index.columns)
    return mixed_correction(moment_of_index(index, settings.dtype), queries, index.columns, settings)


def mixed_correction(trained: Moment, queries: Tensor, columns: Sequence[slice], settings: RSettings) -> Correction:
    """The same with R_train given."""
    parts, mix = [(1.0, trained)], 0.0
    if settings.kind == "mixed":
        evaluated = moment_of(queries.cpu(), columns, settings.dtype)
        mix = meeting_mix(evaluated, trained, columns[-1].stop) if settings.mix is None else settings.mix
        parts = [(mix, evaluated), (1 - mix, trained)]
    roots = [_root(parts, number) for number in range(len(columns))]
    return Correction(columns, roots, mix, sum(share * float(one.values.sum()) for share, one in parts))


def _root(parts: Sequence[tuple[float, Moment]], number: int) -> Root:
    """Of one block's Σ share · R."""
    if all(one.rows is not None for _, one in parts):
        rows = torch.cat([one.rows[number] * share**0.5 for share, one in parts if one.rows is not None])
        if len(rows) < rows.shape[1]:
            return FewRoot(rows)
    return CholeskyRoot(torch.stack([one.block(number) * share for share, one in parts]).sum(0))


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
    file = index.path / "norms.safetensors"
    identity = {"documents": str(len(index)), "trace of R": f"{correction.trace:.6e}"}
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
    with progress(desc="norms", unit="doc", total=total) as bar:
        for own, features in index.chunks(places):
            found[own] = correction.apply(features).norm(dim=1).numpy()
            bar.update(len(own))
    return found if places is None else found[places]
