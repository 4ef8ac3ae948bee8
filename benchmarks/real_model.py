"""A real model, from a folder: both passes as ratios to a training step, and the commands' wall time and memory.

python -m benchmarks.real_model --model DIR --data passages.jsonl --queries queries.jsonl > real.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import Stopwatch, environment, gradient_steps, interleave, log
from msif.curvature.covariance import CovariancePass
from msif.curvature.eigenvalues import LambdaPass
from msif.curvature.fit import FitSettings
from msif.curvature.inputs import device_and_dtype, find_input_groups
from msif.models.capture import Capture
from msif.models.select import track_modules
from msif.stage import Stage

TRACKED = ("layers", "everything")


def phases(stage: Stage, repeats: int) -> dict[str, Any]:
    """Ratios of medians to a plain training step over the same batches, in turn with it."""
    model, objective = stage.loaded.model, stage.objective
    batches = list(stage.batches)
    device, dtype = device_and_dtype(model)

    train = partial(gradient_steps, model, objective, batches)

    def both(modules: str) -> dict[str, float]:
        tracked = track_modules(model, modules)
        groups = find_input_groups(model, tracked, objective, batches[0])
        watches = {name: Stopwatch(device.type) for name in ("covariance", "eigenvectors", "lambda")}
        covariances = CovariancePass(tracked, groups, device, dtype)
        with watches["covariance"]:
            _run(stage, tracked, covariances, batches)
        with watches["eigenvectors"]:
            factors = covariances.decompose([module.name for module in tracked])
        with watches["lambda"]:
            _run(stage, tracked, LambdaPass(tracked, groups, factors, device, dtype), batches)
        return {f"{modules} {name}": watch.seconds for name, watch in watches.items()}

    work = {modules: (lambda modules=modules: both(modules)) for modules in TRACKED}
    return {name: timing.to_json() for name, timing in interleave(train, work, repeats, device.type).items()}


def _run(stage: Stage, tracked: Any, consumer: Any, batches: Any) -> None:
    cotangents = FitSettings().cotangents(stage.objective, consumer.stream)
    with Capture(stage.loaded.model, tracked, consumer) as capture:
        for batch in batches:
            capture.run(stage.objective, batch, cotangents)


def commands(args: argparse.Namespace) -> dict[str, Any]:
    """Wall seconds and peak resident bytes of a fit, of one question and of all, each in a process of its own."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        one = Path(folder) / "one.jsonl"
        one.write_text(Path(args.queries).read_text().split("\n")[0] + "\n")
        for modules in TRACKED:
            how = ["--dtype", "float32", "--batch-tokens", str(args.batch_tokens), "--quiet"]
            factors = f"{folder}/factors-{modules}"
            fit = ["msif.fit_factors", "--model", args.model, "--data", args.data, "--output", factors, *how]
            found[f"{modules} fit"] = timed([*fit, "--modules", modules])
            ask = ["msif.influence", "--pretrained", args.model, "--pretrained-factors", factors, "--corpus", args.data]
            ask += ["--method", "single-stage", "--candidates", "all", *how]
            for name, queries in (("one query", str(one)), ("all queries", args.queries)):
                output = f"{folder}/{modules}-{name}"
                found[f"{modules} {name}"] = timed([*ask, "--queries", queries, "--output", output])
    if args.bergson:
        found["bergson"] = timed_bergson(args)
    return found


def timed_bergson(args: argparse.Namespace) -> dict[str, float]:
    """The whole of Bergson's EK-FAC pipeline for one question, in its own environment."""
    with tempfile.TemporaryDirectory() as folder:
        one = Path(folder) / "one.jsonl"
        one.write_text(Path(args.queries).read_text().split("\n")[0] + "\n")
        command = [args.bergson, "ekfac", f"{folder}/out", "--model", args.model, "--method", "kfac"]
        command += ["--hessian_cfg.ev_correction", "--projection_dim", "0", "--index_cfg.precision", "fp32"]
        command += ["--hessian_dtype", "fp32", "--data.dataset", args.data, "--data.prompt_column", "text"]
        command += ["--query.dataset", str(one), "--query.prompt_column", "prompt"]
        command += ["--query.completion_column", "completion", "--token_batch_size", str(args.batch_tokens)]
        start = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        found = {"seconds": time.perf_counter() - start}
    log(f"bergson: {found['seconds']:.1f} s")
    return found


def timed(command: list[str]) -> dict[str, float]:
    start = time.perf_counter()
    measured = ["-c", _MEASURED, *command]
    done = subprocess.run([sys.executable, *measured], stdout=subprocess.PIPE, text=True, check=True)
    found = {"seconds": time.perf_counter() - start, "peak_bytes": int(done.stdout.split()[-1])}
    log(f"{command[0]}: {found['seconds']:.1f} s, {found['peak_bytes'] / 1e9:.2f} GB")
    return found


_MEASURED = """
import runpy, sys
sys.argv = sys.argv[1:]
name = sys.argv[0]
try:
    runpy.run_module(name, run_name="__main__", alter_sys=True)
finally:
    from benchmarks.measure import resident_bytes
    print(resident_bytes(peak=True))
"""


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True, help="folder of a model")
    p.add_argument("--data", required=True, help="texts, JSON Lines")
    p.add_argument("--queries", required=True, help="queries for msif.influence")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--batch-tokens", type=int, default=2048, help="of the commands, and of Bergson's")
    p.add_argument("--sequences", type=int, default=8, help="of the data, for the phases")
    p.add_argument("--bergson", help="its executable, to be timed beside the commands")
    p.add_argument("--only", choices=["phases", "commands"])
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    settings = {**vars(args), "model": Path(args.model).name, "data": Path(args.data).name}
    settings |= {"queries": Path(args.queries).name, "bergson": args.bergson and "2.5.1"}
    report: dict[str, Any] = {"settings": settings, "environment": environment(["torch", "transformers"])}
    if args.only != "commands":
        stage = Stage(args.model, args.data, dtype="float32", max_examples=args.sequences)
        report["phases"] = phases(stage, args.repeats)
    if args.only != "phases":
        report["commands"] = commands(args)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
