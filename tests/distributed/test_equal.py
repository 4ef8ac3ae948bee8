"""What several processes make together is what one makes."""

from processes import together


def test_fits_and_scores_of_two_processes_are_those_of_one(tmp_path):
    together(2, "equal.py", tmp_path)


def test_weights_that_are_shared_out_give_the_same(tmp_path):
    together(2, "sharded.py", tmp_path)
