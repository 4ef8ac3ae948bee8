"""Imports once what takes seconds, and forks the processes that lines on stdin ask for."""

import json
import os
import runpy
import sys
import tempfile
from pathlib import Path

import datasets  # noqa: F401
import helpers  # noqa: F401
import transformers.models.gpt2.modeling_gpt2
import transformers.models.gpt_neox.modeling_gpt_neox
import transformers.models.llama.modeling_llama  # noqa: F401

import msif.build_index
import msif.cli.explain
import msif.cli.output
import msif.fit_factors
import msif.influence
import msif.prepare  # noqa: F401

OUTPUTS = {}  # of each process that has not been waited for


def run(command, environment, output):
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    os.environ.update(environment)
    sys.argv = command
    status = 1
    try:
        if Path(command[0]).suffix == ".py":
            runpy.run_path(command[0], run_name="__main__")
        else:
            sys.modules.pop(command[0], None)  # as python -m reads it
            runpy.run_module(command[0], run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def start(command, environment):
    """The id of a process that runs a script, or a module."""
    output = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the process is waited for
    child = os.fork()
    if child == 0:
        run(command, environment, output)
    OUTPUTS[child] = output
    return child


def end(process, block):
    """(status, what was said) of a process that has ended."""
    found, status = os.waitpid(process, 0 if block else os.WNOHANG)
    if not found:
        return None
    with OUTPUTS.pop(process) as output:
        output.seek(0)
        return os.waitstatus_to_exitcode(status), output.read().decode(errors="replace")


for line in sys.stdin:
    name, *arguments = json.loads(line)
    print(json.dumps({"start": start, "end": end}[name](*arguments)), flush=True)
