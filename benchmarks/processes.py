"""Several processes of one thread each against one: fitting, and scoring by the factors, under torchrun.

python -m benchmarks.processes --model DIR --data passages.jsonl --queries queries.jsonl > processes.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks.measure import environment, log, resident_bytes

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True, help="folder of a model")
    p.add_argument("--data", required=True, help="texts, JSON Lines")
    p.add_argument("--queries", required=True, help="queries for msif.influence")
    p.add_argument("--processes", type=int, default=2)
    p.add_argument("--batch-tokens", type=int, default=256)
    p.add_argument("--output", help=argparse.SUPPRESS)  # one of the processes that are measured
    args = p.parse_args()
    if args.output:
        measured(args)
        return
    found: dict[str, Any] = {"environment": environment(["torch", "transformers"]), "arguments": vars(args)}
    with tempfile.TemporaryDirectory() as folder:
        for count in (1, args.processes):
            found[str(count)] = started(args, count, f"{folder}/{count}")
            log(f"{count} processes: {found[str(count)]}")
    one, several = found["1"], found[str(args.processes)]
    names = [name for name in one if name.endswith("seconds")]
    found["ratio"] = {name.removesuffix(" seconds"): one[name] / several[name] for name in names}
    print(json.dumps(found, indent=1))


def started(args: argparse.Namespace, count: int, folder: str) -> dict[str, Any]:
    given = {"--model": args.model, "--data": args.data, "--queries": args.queries}
    given |= {"--batch-tokens": str(args.batch_tokens), "--output": folder}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    command += ["-m", "benchmarks.processes", *(word for pair in given.items() for word in pair)]
    start = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **ONE_THREAD})
    return {**json.loads(done.stdout.splitlines()[-1]), "whole seconds": time.perf_counter() - start}


def measured(args: argparse.Namespace) -> None:
    """Seconds of a fit, of making a query's vectors and of a pass over the documents, without start-up and loading."""
    from msif import distributed
    from msif.attribution.damping import Damping
    from msif.attribution.stages import FittedStage, build_scorer
    from msif.data.batching import batches_of
    from msif.data.queries import encode_queries, load_queries
    from msif.stage import Stage

    if int(os.environ["WORLD_SIZE"]) > 1:
        distributed.start()
    limits = {"dtype": "float32", "device": "cpu", "batch_tokens": args.batch_tokens}
    stage = Stage(args.model, args.data, args.output, **limits)
    assert stage.side and stage.batches
    start = time.perf_counter()
    fitted = FittedStage(stage.side, stage.store)
    found = {"fit seconds": time.perf_counter() - start}
    peak = distributed.gathered(resident_bytes(peak=True))
    scorer = build_scorer("single-stage", fitted, None, Damping())
    queries = batches_of(encode_queries(load_queries(args.queries, "lm"), stage.loaded.tokenizer), args.batch_tokens)
    start = time.perf_counter()
    vectors = distributed.computed(lambda: scorer.query_vectors(queries))
    found["query seconds"] = time.perf_counter() - start
    start = time.perf_counter()
    scorer.score_vectors(vectors, stage.batches)
    found["score seconds"] = time.perf_counter() - start
    if distributed.leads():
        print(json.dumps({**found, "peak bytes": peak}))


if __name__ == "__main__":
    main()
