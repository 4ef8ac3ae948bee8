"""What a pass will be made of, from a few documents, against the batches that it is made of."""

from collections import Counter

import numpy as np
import pytest

from msif.data import sample
from msif.data.batching import TokenBatches
from msif.data.corpus import corpus_from_rows
from msif.data.encoding import Encoder
from msif.data.format import Format
from msif.data.sample import FEW, MANY, foretell
from msif.errors import MsifError


def batches_of_lengths(tokenizer, lengths, **options):
    rows = [{"text": "x" * int(length)} for length in lengths]
    return TokenBatches(corpus_from_rows(rows), Format(text="text"), tokenizer, **{"batch_tokens": 64, **options})


def test_of_a_small_corpus_all_is_known(tokenizer):
    batches = batches_of_lengths(tokenizer, [5, 30, 7, 64, 90, 2, 12, 12], max_length=70)
    plan = foretell(batches)
    assert Counter(plan.shapes) == Counter(tuple(batch.input_ids.shape) for batch in batches)
    assert (plan.times, plan.documents, plan.batches) == (1, 8, len(list(batches)))
    assert plan.tokens == sum(batch.input_ids.numel() for batch in batches)


@pytest.mark.parametrize("count", [700, 20_000])
def test_a_sample_stands_for_the_rest(tokenizer, monkeypatch, count):
    monkeypatch.setattr(sample, "SECONDS", 1000.0)
    lengths = np.random.default_rng(0).choice([4, 9, 40, 50], count, p=[0.5, 0.2, 0.2, 0.1])
    plan = foretell(batches_of_lengths(tokenizer, lengths, batch_tokens=500))
    assert plan.documents == count and len(plan.sample) == min(MANY, count / 4)
    assert plan.tokens == pytest.approx(lengths.sum(), rel=0.2)
    half = plan.part(count / 2)
    assert (half.tokens, half.batches, half.reading) == pytest.approx(
        (plan.tokens / 2, plan.batches / 2, plan.reading / 2)
    )


def test_documents_that_take_long_are_few(tokenizer, monkeypatch):
    monkeypatch.setattr(sample, "SECONDS", 0.0)
    assert len(foretell(batches_of_lengths(tokenizer, [9] * 50)).sample) == FEW


def test_only_the_rows_in_use_are_sampled(tokenizer):
    plan = foretell(batches_of_lengths(tokenizer, [3, 50, 3, 50], indices=[0, 2]))
    assert plan.documents == 2 and plan.shapes == {(2, 3): 1}


def test_a_stream_is_told_for_one_document(tokenizer):
    from datasets import Dataset

    from msif.data.corpus import Corpus

    stream = Corpus(Dataset.from_list([{"text": "x" * 10}] * 500).to_iterable_dataset(), "stream")
    plan = foretell(TokenBatches(stream, Format(text="text"), tokenizer, batch_tokens=64))
    assert plan.documents == 1 and plan.tokens == pytest.approx(10)


@pytest.mark.parametrize(("tokens", "documents", "shape"), [(8, 1, (1, 8)), (48, None, (2, 20)), (1000, None, (9, 64))])
def test_a_small_batch_is_of_common_documents_and_small(tokenizer, tokens, documents, shape):
    plan = foretell(batches_of_lengths(tokenizer, [20, 20, 20, 20, 20, 20, 20, 64, 3], batch_tokens=500))
    batch = plan.small_batch(tokens, documents)
    assert batch.input_ids.shape[0] <= shape[0] and batch.input_ids.shape[1] == min(shape[1], 20)
    assert batch.input_ids.numel() <= tokens


def test_a_corpus_of_nothing_is_told(tokenizer, monkeypatch):
    monkeypatch.setattr(Encoder, "documents", lambda self, rows, tally=None: iter(()))
    with pytest.raises(MsifError, match="none of 3 rows of 'rows' has anything to predict"):
        foretell(batches_of_lengths(tokenizer, [9] * 3))
