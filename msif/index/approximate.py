"""Approximate search by faiss, over baked vectors, whose inner products with a query's are the scores.

index/NAME/baked-R/faiss.index   what faiss made of all of them; it is read into memory
index/NAME/baked-R/faiss.json    factory, of which vectors, how it is searched, and what it finds of the exact search
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from msif.atomic import atomic_path, write_json
from msif.errors import MsifError
from msif.index.baking import BAKED, FILE, baked_folder
from msif.index.correction import RSettings
from msif.index.search import Found, search
from msif.index.storage import GradientIndex
from msif.progress import progress

log = logging.getLogger(__name__)

# vectors that faiss is trained on, float32
SAMPLE_BYTES = 2**30
# below so many documents each of them is looked at
FEW = 10_000
# of a list, that its centre is taken from: what faiss asks for
VECTORS_PER_LIST = 39
# of the first ten by exact search, what is to be found: lists or neighbours are added until it is
RECALL, QUERIES = 0.95, 100
# a width that most numbers of parts divide, to read a factory by before the true width is known
ANY_WIDTH = 322_560


@dataclass(frozen=True)
class Approximate:
    """What faiss made of baked vectors, open for search.

    Attributes:
        baked: the vectors.
        index: of faiss.
        report: factory, documents, parameter, recall; see ``make_approximate``.
    """

    baked: GradientIndex
    index: Any
    report: dict[str, Any]

    def __str__(self) -> str:
        said, recall = self.report, self.report["recall"]
        how = f", {said['parameter']} {said['value']}" if said["parameter"] else ""
        return (
            f"faiss: {said['factory']}{how} finds {recall['10']:.0%} of the first 10 and {recall['100']:.0%} of the "
            f"first 100 of exact search (measured on {said['queries']} sums of two documents' vectors)"
        )

    def search(self, vectors: Tensor, k: int, *, places: np.ndarray | None = None, lowest: bool = False) -> Found:
        """About the k documents of each query with the largest ⟨v, ψ⟩, or the lowest, with scores as faiss has them.

        A query of which it finds fewer than k is searched exactly, and so is a part of the documents, for which the
        measured recall would not hold.

        Args:
            vectors: (Q, D), unit W φ.
            places: of the documents to choose from; all where nothing is said.

        Raises:
            MsifError: k is below 1, or vectors of another size.
        """
        if places is not None and len(places) < len(self.baked):
            log.info("%d of %d documents are chosen from: they are searched exactly", len(places), len(self.baked))
            return search(self.baked, vectors, k, places=places, lowest=lowest)
        if k < 1 or vectors.shape[1] != self.baked.width:
            return search(self.baked, vectors, k)  # which says what is wrong
        sign = -1.0 if lowest else 1.0
        asked = np.ascontiguousarray(sign * vectors.float().cpu().numpy())
        scores, found = self.index.search(asked, min(k, len(self.baked)))
        few = np.flatnonzero((found < 0).any(1))
        if len(few):
            exact = search(self.baked, vectors[few], k, lowest=lowest)
            found[few], scores[few] = exact.places, sign * exact.scores
        return Found(found, sign * scores)


def make_approximate(baked: GradientIndex, factory: str | None = None) -> Approximate:
    """Trains faiss on a sample of baked vectors, adds all, and measures what it finds; kept beside them.

    What is there, of these vectors and this factory, is opened.

    Args:
        factory: of faiss, such as "IVF1024,Flat" or "HNSW32,Flat"; None chooses it by the number of documents.

    Raises:
        MsifError: faiss is missing, or cannot do that with these vectors.
    """
    faiss, factory = _faiss(), factory or usual_factory(len(baked), baked.width)
    try:
        there = _opened(baked)
        if there.report["factory"] == factory:
            return there
    except MsifError:
        pass  # there is none, or it is stale
    try:
        index = faiss.index_factory(baked.width, factory, faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:
            index.train(_sample(baked))
        with progress(desc="faiss", unit="doc", total=len(baked)) as bar:
            for own, features in baked.chunks():
                index.add(features.numpy())
                bar.update(len(own))
    except RuntimeError as error:
        reason = " ".join(str(error).rpartition("Error: ")[2].split())
        raise MsifError(
            f"faiss cannot make '{factory}' of {len(baked)} vectors of {baked.width} ({reason}): give another --faiss."
        ) from error
    report: dict[str, Any] = {"factory": factory, "documents": len(baked), "vectors": _fingerprint(baked)}
    report |= _tuned(Approximate(baked, index, report))
    (baked.path / "faiss.json").unlink(missing_ok=True)  # which tells of the file that is replaced
    with atomic_path(baked.path / "faiss.index") as part:
        faiss.write_index(index, str(part))
    write_json(baked.path / "faiss.json", report)
    return _opened(baked)


def open_approximate(index: GradientIndex, r: RSettings, normalize: str) -> Approximate:
    """What faiss made of an index's baked vectors of this R.

    Raises:
        MsifError: the score is not of vectors that were baked, faiss is missing, or there is nothing of it for these
            documents.
    """
    if r not in [RSettings(kind) for kind in BAKED] or normalize != "unit":
        raise MsifError(
            "faiss searches fixed unit vectors, and mixed R depends on the queries: give --r none or --r train, with "
            "--normalize unit, or --search exact."
        )
    return _opened(index.beside(baked_folder(index, r.kind)))


def check_factory(factory: str | None) -> None:
    """
    Raises:
        MsifError: faiss is missing, or does not know the factory.
    """
    faiss = _faiss()
    try:
        faiss.index_factory(ANY_WIDTH, factory or "Flat", faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise MsifError(
            f"faiss cannot read '{factory}': give one of its factory strings, such as Flat, IVF1024,SQ8 or HNSW32,Flat."
        ) from error


def usual_factory(documents: int, width: int) -> str:
    """All vectors of few documents; of more √N lists, of a byte a feature, or as many as the sample can train."""
    if documents < FEW:
        return "Flat"
    lists = min(int(documents**0.5), _sample_size(documents, width) // VECTORS_PER_LIST)
    return f"IVF{max(1, lists)},SQ8"


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise MsifError("approximate search needs faiss: pip install 'msif[faiss]'.") from error
    return faiss


def _opened(baked: GradientIndex) -> Approximate:
    """
    Raises:
        MsifError: there is none, it is damaged, or of other vectors than are there now.
    """
    faiss = _faiss()
    try:
        report = json.loads((baked.path / "faiss.json").read_text(encoding="utf-8"))
        is_current = report["vectors"] == _fingerprint(baked) and report["documents"] == len(baked)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MsifError(
            f"there is nothing of faiss in {baked.path}: make it with python -m msif.build_index --bake "
            f"{baked.path.name.removeprefix('baked-')} --faiss."
        ) from error
    if not is_current:
        raise stale(baked.path)
    try:
        index = faiss.read_index(str(baked.path / "faiss.index"))
    except RuntimeError as error:
        raise MsifError(
            f"{baked.path / 'faiss.index'} cannot be read: remove it and faiss.json, and give --faiss to "
            "python -m msif.build_index again."
        ) from error
    if (index.ntotal, index.d) != (len(baked), baked.width):
        raise stale(baked.path)
    return Approximate(baked, index, report)  # the parameter is in faiss' file


def stale(folder: Path) -> MsifError:
    return MsifError(
        f"what faiss made in {folder} is of other documents or another R than the index has now: run "
        f"python -m msif.build_index --bake {folder.name.removeprefix('baked-')} --faiss again, or give --search exact."
    )


def _fingerprint(baked: GradientIndex) -> str:
    """Of the vectors that are there: R, and all shards."""
    return hashlib.sha256((baked.path / FILE).read_bytes()).hexdigest()


def _sample_size(documents: int, width: int) -> int:
    return min(documents, max(1, SAMPLE_BYTES // (4 * width)))


def _sample(baked: GradientIndex) -> np.ndarray:
    """Evenly chosen vectors, float32, (n, D)."""
    size = _sample_size(len(baked), baked.width)
    return baked.rows(np.arange(size) * len(baked) // size).numpy()


def _tuned(approximate: Approximate) -> dict[str, Any]:
    """The search parameter at which enough is found, and what is found with it of the first 10 and 100.

    Queries are sums of two documents' vectors, which lie where no document does; these two are left out.
    """
    faiss, baked = _faiss(), approximate.baked
    own = np.linspace(0, len(baked) - 1, min(QUERIES, len(baked)), dtype=np.int64)
    pairs = np.stack([own, np.roll(own, len(own) // 2)], 1)
    queries = F.normalize(baked.rows(pairs[:, 0]) + baked.rows(pairs[:, 1]), dim=1)
    exact = search(baked, queries, 102).places
    space, name = faiss.ParameterSpace(), None
    values: list[int | None] = [None]
    space.initialize(approximate.index)
    ranges = space.parameter_ranges
    for number in range(ranges.size()):
        one = ranges.at(number)  # which owns its values
        if one.name in ("nprobe", "efSearch"):
            name, values = one.name, [int(value) for value in faiss.vector_to_array(one.values)]
    if name == "nprobe":
        values.append(faiss.extract_index_ivf(approximate.index).nlist)
    for value in values:
        if name is not None:
            space.set_index_parameter(approximate.index, name, value)
        found = approximate.index.search(queries.numpy(), min(102, len(baked)))[1]
        recall = {str(k): _recall(found, exact, pairs, k) for k in (10, 100)}
        if recall["10"] >= RECALL:
            break
    return {"parameter": name, "value": value, "recall": recall, "queries": len(queries)}


def _recall(found: np.ndarray, exact: np.ndarray, pairs: np.ndarray, k: int) -> float:
    """The share of the first k by exact search, without each query's own pair, that was found."""
    hits = total = 0
    for ours, theirs, own in zip(found, exact, pairs, strict=True):
        wanted = theirs[~np.isin(theirs, own)][:k]
        hits += np.isin(wanted, ours[~np.isin(ours, own)][:k]).sum()
        total += len(wanted)
    return float(hits / total) if total else 1.0
