"""An index: a batch's features as a ratio to a training step, and search against a plain read of the same file.

python -m benchmarks.index --model DIR --data passages.jsonl > index.json
python -m benchmarks.index --search 1000000 --features 4096 > search.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import environment, gradient_steps, interleave, log
from benchmarks.real_model import timed
from msif.attribution.features import GradientProjector
from msif.attribution.gradients import Side
from msif.curvature.inputs import device_and_dtype
from msif.index.plan import Plan
from msif.index.pools import indexed_modules
from msif.index.search import search
from msif.index.settings import IndexSettings
from msif.index.storage import GradientIndex, encoded
from msif.index.writing import ShardWriter, open_or_create
from msif.models.training.moments import SecondMoments
from msif.stage import Stage

SHARD = 2**15


def features(stage: Stage, repeats: int) -> dict[str, Any]:
    """Ratios of medians to a plain training step over the same batches, in turn with it."""
    model, objective, batches = stage.loaded.model, stage.objective, list(stage.batches)
    side = Side(model, indexed_modules(model, "everything", tied=False), objective)
    factored = {m.name: SecondMoments((torch.ones(m.d_out), torch.ones(m.d_in)), _bias(m)) for m in side.tracked}
    whole = {m.name: SecondMoments(torch.ones(m.d_out, m.d_in), _bias(m)) for m in side.tracked}
    device, _ = device_and_dtype(model)

    train = partial(gradient_steps, model, objective, batches)

    def make(plan: Plan) -> None:
        with GradientProjector(plan.side, plan.features, [plan.cotangent]) as project:
            for batch in batches:
                encoded(project(batch)[0].float().cpu(), plan.columns, "bfloat16")

    plans = {"no second moments": Plan(side, IndexSettings())}
    plans |= {"factored": Plan(side, IndexSettings(), factored), "whole": Plan(side, IndexSettings(), whole)}
    work = {name: (lambda plan=plan: make(plan)) for name, plan in plans.items()}
    return {name: timing.to_json() for name, timing in interleave(train, work, repeats, device.type).items()}


def commands(args: argparse.Namespace) -> dict[str, Any]:
    """Wall seconds and peak memory of a build, and seconds of Bergson's on the same texts, each in its own process."""
    with tempfile.TemporaryDirectory() as folder:
        own = ["msif.build_index", "--model", args.model, "--data", args.data, "--output", f"{folder}/index"]
        found = {"msif": timed([*own, "--dtype", "float32", "--batch-tokens", "2048", "--quiet"])}
        if args.bergson:
            command = [args.bergson, "build", f"{folder}/bergson", "--model", args.model, "--precision", "fp32"]
            command += ["--dataset", args.data, "--prompt_column", "text", "--token_batch_size", "2048"]
            start = time.perf_counter()
            subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
            found["bergson"] = {"seconds": time.perf_counter() - start}
            log(f"bergson: {found['bergson']['seconds']:.1f} s")
    return found


def _bias(module: Any) -> torch.Tensor | None:
    return torch.ones(module.d_out) if module.bias else None


def searched(documents: int, width: int, queries: int, k: int) -> dict[str, Any]:
    """Seconds of a search over random features, and of a plain read of the shards, each from disk."""
    with tempfile.TemporaryDirectory() as folder:
        index = _random_index(Path(folder) / "index", documents, width)
        files = sorted(index.path.glob("*.safetensors"))
        size = sum(file.stat().st_size for file in files)
        vectors = torch.randn(queries, width, generator=torch.Generator().manual_seed(1))
        found = {"documents": documents, "features": width, "queries": queries, "bytes": size}
        for name, work in (("read", lambda: _read(files)), ("search", lambda: search(index, vectors, k))):
            for file in files:
                _forget(file)
            start = time.perf_counter()
            work()
            found[f"{name} seconds"] = time.perf_counter() - start
            log(f"{name}: {found[f'{name} seconds']:.1f} s, {size / found[f'{name} seconds'] / 1e9:.2f} GB/s")
        found["product seconds"] = documents * _product(vectors)
        log(f"products alone: {size / found['product seconds'] / 1e9:.2f} GB/s")
        return found


def _product(vectors: torch.Tensor, rows: int = 1024, repeats: int = 20) -> float:
    """Seconds for a document's float32 products with all queries, of a chunk in memory: the best of some."""
    chunk, seconds = torch.randn(rows, vectors.shape[1]), []
    for _ in range(repeats):
        start = time.perf_counter()
        vectors @ chunk.T
        seconds.append(time.perf_counter() - start)
    return min(seconds) / rows


def _random_index(path: Path, documents: int, width: int) -> GradientIndex:
    settings = IndexSettings(projection=int(width**0.5), blocks=1)
    run = {"settings": settings.to_json(), "moments": None, "curvature": None}
    open_or_create(path, run, {"columns": [[0, width]], "blocks": ["all"], "provenance": {}})
    writer = ShardWriter(path)
    generator = torch.Generator().manual_seed(0)
    for start in range(0, documents, SHARD):
        rows = range(start, min(start + SHARD, documents))
        tensors = encoded(torch.randn(len(rows), width, generator=generator), [slice(0, width)], "bfloat16")
        named = {"hash": [row.to_bytes(16, "big") for row in rows], "row": list(rows)}
        named |= {"id": [str(row) for row in rows], "source": ["random"] * len(rows), "tokens": [1] * len(rows)}
        writer.write(tensors, named)
    writer.save(complete=True)
    return GradientIndex.open(path)


def _read(files: list[Path]) -> None:
    for file in files:
        for _ in _blocks(file):
            pass


def _blocks(file: Path, size: int = 2**24) -> Iterator[int]:
    buffer = np.empty(size, dtype=np.uint8)
    with open(file, "rb", buffering=0) as handle:
        while count := handle.readinto(buffer):
            yield count


def _forget(file: Path) -> None:
    """So that the next read is from disk."""
    handle = os.open(file, os.O_RDONLY)
    os.fsync(handle)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(handle)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", help="folder of a model")
    p.add_argument("--data", help="texts, JSON Lines")
    p.add_argument("--sequences", type=int, default=8, help="of the data")
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--search", type=int, metavar="N", help="documents of a random index to search")
    p.add_argument("--features", type=int, default=4096, help="of such a document, a square")
    p.add_argument("--queries", type=int, default=100)
    p.add_argument("--top-k", type=int, default=10)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--bergson", help="its executable, to be timed beside the command")
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    named = {name: Path(value).name for name in ("model", "data") if (value := getattr(args, name))}
    named |= {"bergson": args.bergson and "2.5.1"}
    report: dict[str, Any] = {
        "settings": {**vars(args), **named},
        "environment": environment(["torch", "transformers"]),
    }
    if args.search:
        report["search"] = searched(args.search, args.features, args.queries, args.top_k)
    if args.model:
        stage = Stage(args.model, args.data, dtype="float32", max_examples=args.sequences, batch_tokens=1024)
        report["features"] = features(stage, args.repeats)
        report["commands"] = commands(args)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
