"""Fast tokenizers use their threads, and nobody is warned of a fork."""

import os
import subprocess
import sys

import pytest
from worlds import save_tokenizer

SCRIPT = """
import os, sys
from msif.cli.parsing import set_up_logging
set_up_logging(quiet=False)
set_up_logging(quiet=False)
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
tokenizer(["a few words"] * 600)
threads = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0
child = os.fork()
if child == 0:
    tokenizer(["a few words"] * 600)
    print("child", os.environ.get("TOKENIZERS_PARALLELISM"), flush=True)
    os._exit(0)
os.waitpid(child, 0)
print("parent", os.environ.get("TOKENIZERS_PARALLELISM"), threads)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.parametrize("own", [None, "false"])
def test_threads_here_and_none_in_a_fork(tmp_path, own):
    save_tokenizer(tmp_path)
    environment = {key: value for key, value in os.environ.items() if key != "TOKENIZERS_PARALLELISM"}
    environment |= {"RAYON_NUM_THREADS": "3", "OMP_NUM_THREADS": "1"} | ({"TOKENIZERS_PARALLELISM": own} if own else {})
    line = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True, env=environment, timeout=120, check=True)
    assert done.stderr == ""
    child, parent = done.stdout.splitlines()
    assert child == f"child {own or 'false'}" and parent.startswith(f"parent {own} ")
    if sys.platform == "linux":
        assert (int(parent.split()[-1]) > 3) == (own is None)
