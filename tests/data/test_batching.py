import json

import numpy as np
import pytest
import torch

from msif.data.batching import TokenBatches, batches_of, plan_batches
from msif.data.corpus import corpus_from_rows, load_corpus
from msif.data.documents import Document
from msif.data.format import Format
from msif.errors import MsifError

TEXT = Format(text="text")


def make_documents(count=300, longest=60):
    lengths = np.random.default_rng(0).integers(2, longest, size=count)
    return [
        Document(index, np.full(length, index % 7, dtype=np.int32), np.arange(length) > 0)
        for index, length in enumerate(lengths)
    ]


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("window", [32, 1000])
@pytest.mark.parametrize("budget", [1, 64, 500])
def test_each_document_once_within_budget(budget, window, seed):
    documents = make_documents()
    batches = list(plan_batches(iter(documents), batch_tokens=budget, window=window, seed=seed))
    assert sorted(document.index for batch in batches for document in batch) == list(range(len(documents)))
    for batch in batches:
        assert len(batch) * max(map(len, batch)) <= budget or len(batch) == 1
    again = list(plan_batches(iter(documents), batch_tokens=budget, window=window, seed=seed))
    assert [[d.index for d in batch] for batch in batches] == [[d.index for d in batch] for batch in again]


def test_no_seed_is_longest_first_and_a_seed_permutes_the_same_batches():
    documents = make_documents()
    plain = list(plan_batches(documents, batch_tokens=256))
    lengths = [len(document) for batch in plain for document in batch]
    assert lengths == sorted(lengths, reverse=True)
    names = [tuple(d.index for d in batch) for batch in plain]
    orders = [
        [tuple(d.index for d in batch) for batch in plan_batches(documents, batch_tokens=256, seed=seed)]
        for seed in (0, 1)
    ]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(names)
    assert orders[0] != orders[1] != names != orders[0]


def test_windows_are_permuted_differently():
    same = [Document(index, np.zeros(4, dtype=np.int32), np.arange(4) > 0) for index in range(200)]
    order = [d.index for batch in plan_batches(same, batch_tokens=4, window=100, seed=0) for d in batch]
    assert sorted(order[:100]) == list(range(100))
    assert order[:100] != [index - 100 for index in order[100:]]


def test_budget_must_hold_something():
    with pytest.raises(MsifError, match="--batch-tokens"):
        list(plan_batches(make_documents(3), batch_tokens=0))


def test_padding():
    documents = make_documents(20)
    for batch in batches_of(documents, 200, pad_id=9):
        for row, index in enumerate(batch.indices.tolist()):
            document = documents[index]
            length = len(document)
            assert batch.attention_mask[row].tolist() == [1] * length + [0] * (batch.input_ids.shape[1] - length)
            assert batch.input_ids[row, :length].tolist() == document.input_ids.tolist()
            assert (batch.input_ids[row, length:] == 9).all()
            assert batch.supervised[row].sum() == length - 1 and not batch.supervised[row, length:].any()


ROWS = [{"text": "the " + "word " * (number % 13) + str(number)} for number in range(100)]


def equal(left, right):
    return all(
        torch.equal(a.indices, b.indices)
        and torch.equal(a.input_ids, b.input_ids)
        and torch.equal(a.supervised, b.supervised)
        for a, b in zip(left, right, strict=True)
    )


def test_corpus_to_batches_and_again(tokenizer):
    batches = TokenBatches(corpus_from_rows(ROWS), TEXT, tokenizer, max_length=40, batch_tokens=256, seed=0, window=30)
    first = list(batches)
    assert batches.size == 100
    assert sorted(torch.cat([batch.indices for batch in first]).tolist()) == list(range(100))
    assert max(batch.input_ids.shape[1] for batch in first) == 40
    assert equal(first, list(batches))
    for skip in (1, 7, len(first), len(first) + 5):
        assert equal(first[skip:], list(batches.iterate(skip=skip)))


def test_stream_gives_the_same_documents(tokenizer, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for indices in (None, [3, 50, 7]):
        made = []
        for streaming in (False, True):
            corpus = load_corpus(str(path), streaming=streaming)
            made.append(TokenBatches(corpus, TEXT, tokenizer, batch_tokens=256, indices=indices, seed=1))
        mapped, streamed = made
        assert streamed.size == (None if indices is None else 3)
        assert equal(list(mapped), list(streamed))
        assert equal(list(streamed), list(streamed))
    (batch,) = mapped
    assert sorted(batch.indices.tolist()) == [3, 7, 50]


def test_labels_reach_the_batch(tokenizer):
    rows = [{"text": f"text {number}", "label": number % 2} for number in range(5)]
    format = Format(text="text", label="label")
    for batch in TokenBatches(corpus_from_rows(rows), format, tokenizer):
        assert batch.labels.tolist() == [index % 2 for index in batch.indices.tolist()]
        assert not batch.supervised.any()


def test_bad_row_is_named_with_its_corpus(tokenizer):
    corpus = corpus_from_rows([{"text": "fine"}, {"text": ""}], "odd {name}")
    with pytest.raises(MsifError, match=r"row 1 of 'odd \{name\}' is empty"):
        list(TokenBatches(corpus, TEXT, tokenizer))
