"""Imports once what takes seconds, and forks the processes of one run after the other, as lines on stdin ask for."""

import json
import os
import runpy
import sys
import tempfile
from contextlib import ExitStack

import helpers  # noqa: F401
import transformers.models.gpt2.modeling_gpt2
import transformers.models.llama.modeling_llama  # noqa: F401

import msif.cli.explain
import msif.cli.output
import msif.fit_factors
import msif.influence
import msif.prepare  # noqa: F401


def run(asked, rank, output):
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    os.environ.update(asked["environment"], RANK=str(rank), LOCAL_RANK=str(rank))
    sys.argv = asked["command"]
    status = 1
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
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


def ends_of(asked):
    """[(status, what was said)] of the processes of a run."""
    with ExitStack() as stack:
        outputs = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(asked["count"])]
        children = []
        for rank, output in enumerate(outputs):
            children.append(os.fork())
            if children[-1] == 0:
                run(asked, rank, output)
        ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        for output in outputs:
            output.seek(0)
        said = [output.read().decode(errors="replace") for output in outputs]
    return list(zip(ends, said, strict=True))


for line in sys.stdin:
    print(json.dumps(ends_of(json.loads(line))), flush=True)
