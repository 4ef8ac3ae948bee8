"""Two processes of one thread each against one: fitting and scoring by the commands, in turn, under torchrun.

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

import psutil

from benchmarks.measure import environment, log

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True, help="folder of a model")
    p.add_argument("--data", required=True, help="texts, JSON Lines")
    p.add_argument("--queries", required=True, help="queries for msif.influence")
    p.add_argument("--processes", type=int, default=2)
    p.add_argument("--batch-tokens", default="256")
    args = p.parse_args()
    counts = (1, args.processes)
    found: dict[str, Any] = {"environment": environment(("msif", "torch")), "arguments": vars(args)}
    with tempfile.TemporaryDirectory() as folder:
        common = ["--batch-tokens", args.batch_tokens, "--dtype", "float32", "--device", "cpu", "--quiet"]
        fit = ["msif.fit_factors", "--model", args.model, "--data", args.data, *common]
        found["fit"] = {n: timed([*fit, "--output", f"{folder}/{n}"], n) for n in counts}
        asked = ["msif.influence", "--pretrained", args.model, "--method", "single-stage"]
        asked += ["--pretrained-factors", f"{folder}/1", "--corpus", args.data, "--queries", args.queries]
        asked += ["--candidates", "all", "--top-k", "1", *common]
        found["score"] = {n: timed([*asked, "--output", f"{folder}/scores-{n}"], n) for n in counts}
    for name in ("fit", "score"):
        found[name]["ratio"] = found[name][1]["seconds"] / found[name][args.processes]["seconds"]
    print(json.dumps(found, indent=1))


def timed(command: list[str], processes: int) -> dict[str, Any]:
    """Wall seconds with all that a command does, and the largest resident memory of each process."""
    launcher = [] if processes == 1 else ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    start = time.perf_counter()
    running = subprocess.Popen(
        [sys.executable, "-m", *launcher, *(["-m"] if launcher else []), *command],
        stdout=subprocess.DEVNULL,
        env={**os.environ, **ONE_THREAD},
    )
    peaks: dict[int, int] = {}
    while running.poll() is None:
        for process in _workers(running.pid, bool(launcher)):
            try:
                peaks[process.pid] = max(peaks.get(process.pid, 0), process.memory_info().rss)
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.2)
    assert running.returncode == 0, command
    found = {"seconds": time.perf_counter() - start, "peak_bytes": sorted(peaks.values(), reverse=True)[:processes]}
    peak = ", ".join(f"{value / 1e9:.2f}" for value in found["peak_bytes"])
    log(f"{command[0]}, {processes} processes: {found['seconds']:.1f} s, {peak} GB")
    return found


def _workers(pid: int, launched: bool) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return process.children() if launched else [process]
    except psutil.NoSuchProcess:
        return []


if __name__ == "__main__":
    main()
