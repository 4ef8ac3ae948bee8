"""What several processes make together is what one makes."""

from processes import together


def test_fits_and_scores_of_two_processes_are_those_of_one(tmp_path):
    together(2, "equal.py", tmp_path)
