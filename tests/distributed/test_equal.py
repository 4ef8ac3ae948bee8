"""What several processes make together is what one makes."""

import pytest


@pytest.mark.parametrize("script", ["equal.py", "sharded.py"])
def test_two_processes_make_what_one_makes(script, zygote, tmp_path):
    """Fits, scores and objects; and the same of models whose weights are shared out."""
    for rank, (status, output) in enumerate(zygote.together(2, script, tmp_path)):
        assert status == 0, f"process {rank}:\n{output}"
