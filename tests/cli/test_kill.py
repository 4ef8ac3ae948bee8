"""kill -9 of the command in each of its passes; run again, it ends as if nothing had happened."""

import json
import os
import signal
import time

import pytest
import torch
from worlds import FACTS, fit_factors, save_lm, write_rows

ATTEMPTS = 6


def header(file):
    """The metadata of a safetensors file, which is replaced as a whole; None where it is not there."""
    try:
        with open(file, "rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            return json.loads(opened.read(size)).get("__metadata__", {})
    except FileNotFoundError:
        return None


def state(folder):
    """(the pass that is under way, how much of it is done)."""
    try:
        parts = json.loads((folder / "manifest.json").read_text())["parts"]
    except FileNotFoundError:
        return "start", 0
    if parts["lambda"]:
        return "end", 0
    layers = len(list(folder.glob("layers.?.safetensors")))
    if layers and not parts["eigenvectors"]:
        return "eigenvectors", layers
    phase = "lambda" if parts["eigenvectors"] else "covariance"
    checkpoint = header(folder / "checkpoint.safetensors") or {}
    return phase, int(checkpoint["batches"]) if checkpoint.get("part") == phase else 0


def killed_in(phase, zygote, folder, *arguments):
    """Runs the command and kills it in the midst of a phase; whether the kill was in time."""
    process, ended = zygote.start("msif.fit_factors", *arguments), None
    try:
        deadline = time.monotonic() + 120
        while state(folder)[0] != phase or state(folder)[1] < 2:
            if ended := zygote.end(process, block=False):
                assert ended[0] == 0, ended[1]
                return False  # the pass went by between two looks, on a busy machine
            assert time.monotonic() < deadline, f"no {phase} pass after two minutes: {state(folder)}"
            time.sleep(0.001)
    finally:
        if not ended:
            os.kill(process, signal.SIGKILL)
            ended = zygote.end(process)
    return ended[0] == -signal.SIGKILL and state(folder)[0] == phase


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    """Wide enough that each of the 20 eigendecompositions and 40 batches takes a while."""
    folder = tmp_path_factory.mktemp("kill")
    save_lm(folder / "model", num_hidden_layers=5, intermediate_size=500)
    write_rows(folder / "data.jsonl", [{"text": f"{number} {text}"} for number in range(5) for text in FACTS])
    return folder


def test_kill_9_in_each_pass(problem, zygote):
    flags = [
        "--model",
        problem / "model",
        "--data",
        problem / "data.jsonl",
        "--batch-tokens",
        50,
        "--checkpoint-every",
        0,
    ]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert fit_factors(*flags, "--output", problem / "whole") == 0
        for attempt in range(ATTEMPTS):
            output = problem / f"killed-{attempt}"
            command = [*flags, "--output", output]
            in_time = [killed_in(phase, zygote, output, *command) for phase in ("covariance", "eigenvectors", "lambda")]
            if all(in_time):
                break
        else:
            pytest.fail(f"a pass ended before it could be killed: {in_time}")
        left = state(output)
        assert left[0] == "lambda" and 2 <= left[1] < 40
        assert fit_factors(*flags, "--output", output) == 0
    finally:
        torch.set_num_threads(threads)
    names = sorted(file.name for file in (problem / "whole").iterdir() if file.name != "config.yaml")
    assert names == sorted(file.name for file in output.iterdir() if file.name != "config.yaml")
    for name in names:
        if name.endswith(".safetensors"):
            assert (output / name).read_bytes() == (problem / "whole" / name).read_bytes(), name
    whole, resumed = (json.loads((path / "manifest.json").read_text()) for path in (problem / "whole", output))
    assert {**resumed, "provenance": None} == {**whole, "provenance": None}
