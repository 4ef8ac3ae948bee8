"""What a fit says of how much its factors still move."""

import re

import pytest
from worlds import FACTS, fit_factors

NOT_MEASURED = "warning: how much factors would still move with more data was not measured, for "


@pytest.fixture
def fitted(world, tmp_path, data, capfd):
    """What a fit of the base model says on standard output and on standard error."""

    def run(name, rows, *flags):
        corpus = data(f"{name}.jsonl", rows)
        capfd.readouterr()
        assert fit_factors("--model", world.base, "--data", corpus, "--output", tmp_path / name, *flags) == 0
        return capfd.readouterr()

    return run


def test_one_batch_is_told_and_the_advice_measures(fitted):
    few = [{"text": text} for text in FACTS]
    out, err = fitted("one", few, "--diagnostics")
    assert "–       –" in out and err.count(NOT_MEASURED) == 1
    tokens = re.search(r"one batch: --batch-tokens (\d+) with another --output", err)[1]
    out, err = fitted("several", few, "--batch-tokens", tokens, "--diagnostics")
    assert "–" not in out and NOT_MEASURED not in err
    assert "warning: factors still move per doubling of the data" in err


@pytest.mark.parametrize("rows", [[FACTS[0]], FACTS[:2], FACTS[:3]], ids=len)
def test_data_of_few_sequences_are_told_what_can_be_done(fitted, rows):
    texts = [{"text": text} for text in rows]
    _, err = fitted("few", texts)
    assert NOT_MEASURED in err and ("give more data" in err) == (len(rows) == 1)
    if advice := re.search(r"--batch-tokens \d+", err):
        assert NOT_MEASURED not in fitted("again", texts, *advice[0].split()).err
