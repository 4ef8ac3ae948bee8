"""Fast tokenizers use their threads, and nobody is warned of a fork."""

import os
import sys

import pytest
from worlds import save_tokenizer

SCRIPT = """
import os, sys, warnings
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)  # of a fork, from 3.12
if not os.environ["TOKENIZERS_PARALLELISM"]:
    del os.environ["TOKENIZERS_PARALLELISM"]
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
def test_threads_here_and_none_in_a_fork(tmp_path, zygote, own):
    save_tokenizer(tmp_path)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    given = {"RAYON_NUM_THREADS": "3", "TOKENIZERS_PARALLELISM": own or ""}
    status, said = zygote.end(zygote.start(script, tmp_path, **given))
    assert status == 0 and said.count("\n") == 2, said  # and no warning
    child, parent = said.splitlines()
    assert child == f"child {own or 'false'}" and parent.startswith(f"parent {own} ")
    if sys.platform == "linux":
        assert (int(parent.split()[-1]) > 3) == (own is None)
