import json
import re

import numpy as np
import pytest
import torch
from templates import CHATML, MARKED

from msif.data.batching import TokenBatches, batches_of, cut_lengths, plan_batches
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
        assert sum(map(len, batch)) >= 0.75 * len(batch) * max(map(len, batch))  # the rest is padding
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


@pytest.mark.parametrize(
    ("lengths", "budget", "counts"),
    [
        ([8, 8, 8, 8], 16, [2, 2]),
        ([8, 6, 4, 4, 2], 100, [3, 2]),  # 18 of 24 tokens are three quarters; 4 and 2 as well
        ([8, 4, 4], 100, [2, 1]),  # 12 of 16, and then 16 of 24
        ([9, 1], 100, [1, 1]),
        ([300], 100, [1]),
        ([], 100, []),
    ],
)
def test_batches_end_where_a_quarter_would_be_padding(lengths, budget, counts):
    assert cut_lengths(lengths, budget) == counts


def test_a_few_tokens_of_a_batch():
    (batch,) = batches_of(make_documents(3, longest=12)[:1], 200)
    few = batch.few(4)
    assert few.input_ids.shape == (1, 4) and few.indices.tolist() == batch.indices[:1].tolist()
    assert torch.equal(few.input_ids, batch.input_ids[:1, :4]) and torch.equal(few.supervised, batch.supervised[:1, :4])


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
    assert sorted(index for batch in mapped for index in batch.indices.tolist()) == [3, 7, 50]


def test_labels_reach_the_batch(tokenizer):
    rows = [{"text": f"text {number}", "label": number % 2} for number in range(5)]
    format = Format(text="text", label="label")
    for batch in TokenBatches(corpus_from_rows(rows), format, tokenizer):
        assert batch.labels.tolist() == [index % 2 for index in batch.indices.tolist()]
        assert not batch.supervised.any()


UNUSABLE = {
    "text": (TEXT, [{"text": "fine"}, {"text": ""}, {"text": " \n"}, {"text": None}, {"text": "x"}, {"text": "well"}]),
    "pair": (
        Format(prompt="p", completion="c"),
        [
            {"p": "a", "c": "b"},
            {"p": "a", "c": ""},
            {"p": None, "c": None},
            {"p": "a", "c": None},
            {"p": "", "c": "x"},
            {"p": None, "c": "xy"},
        ],
    ),
    "classification": (
        Format(text="text", label="label"),
        [{"text": text, "label": None if text == "" else 1} for text in ("fine", "", "", " ", "\t", "x")],
    ),
}
CHAT = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "She."}]
MESSAGES = [
    {"m": CHAT},
    {"m": []},
    {"m": None},
    {"m": CHAT[:1]},
    {"m": [{"role": "system", "content": ""}]},
    {"m": CHAT},
]


def corpora(rows, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [load_corpus(str(path), streaming=streaming) for streaming in (False, True)]


@pytest.mark.parametrize("kind", [*UNUSABLE, "messages"])
def test_rows_with_nothing_to_predict_are_skipped_and_counted_once(tokenizer_of, tmp_path, caplog, kind):
    tokenizer = tokenizer_of(chat_template=CHATML)
    format, rows = UNUSABLE.get(kind, (Format(messages="m"), MESSAGES))
    for corpus in corpora(rows, tmp_path):
        caplog.clear()
        batches = TokenBatches(corpus, format, tokenizer, batch_tokens=64)
        first = list(batches)
        assert sorted(torch.cat([batch.indices for batch in first]).tolist()) == [0, 5]
        assert equal(first, list(batches)) and equal(first[1:], list(batches.iterate(skip=1)))
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert re.search(r"4 rows of '.*rows\.jsonl' are skipped, .*; the first is row 1$", caplog.messages[0])


def test_what_truncation_takes_is_counted_once(tokenizer, tmp_path, caplog):
    rows = [{"p": "a" * count, "c": "b" * 3} for count in (1, 9, 2, 8, 3, 7, 4)]
    for corpus in corpora(rows, tmp_path):
        caplog.clear()
        batches = TokenBatches(corpus, Format(prompt="p", completion="c"), tokenizer, max_length=6)
        for _ in range(2):
            assert sorted(torch.cat([batch.indices for batch in batches]).tolist()) == [0, 2, 4, 6]
        skipped, cut = caplog.messages
        assert re.search("3 rows of .* are skipped, since --max-length 6 cuts off .*; the first is row 1$", skipped)
        assert re.search("1 document of .* is cut at --max-length 6$", cut)


def test_a_pass_that_is_not_finished_says_nothing(tokenizer, caplog):
    batches = TokenBatches(corpus_from_rows([{"text": "x"}, *ROWS]), TEXT, tokenizer, window=10)
    next(iter(batches))
    assert not caplog.messages
    list(batches)
    assert len(caplog.messages) == 1


@pytest.mark.parametrize(
    ("rows", "length", "message"),
    [
        ([{"text": "x"}, {"text": ""}], None, "Nothing can be predicted in any of the 2 rows that were read of 'D'"),
        (
            [{"text": "xy"}, {"text": ""}],
            1,
            "Truncation to 1 tokens leaves nothing .* of the 2 rows .* raise --max-length",
        ),
    ],
)
def test_rows_that_are_all_unusable_are_an_error(tokenizer, rows, length, message):
    with pytest.raises(MsifError, match=message):
        list(TokenBatches(corpus_from_rows(rows, "D"), TEXT, tokenizer, max_length=length))


def test_bad_row_is_named_with_its_corpus(tokenizer):
    corpus = corpus_from_rows([{"text": 3}, {"text": 4}], "odd {name}")
    with pytest.raises(MsifError, match=r"row 0 of 'odd \{name\}' is not text"):
        list(TokenBatches(corpus, TEXT, tokenizer))


@pytest.mark.parametrize("change", ["fields", "chat template"])
def test_the_rule_by_which_rows_become_tokens_is_part_of_what_batches_are(tokenizer_of, change):
    corpus = corpus_from_rows([{"m": CHAT, "p": "a", "c": "b", "text": "a"}])
    of_chat = TokenBatches(corpus, Format(messages="m"), tokenizer_of(chat_template=CHATML)).identity()
    if change == "chat template":
        assert of_chat != TokenBatches(corpus, Format(messages="m"), tokenizer_of(chat_template=MARKED)).identity()
    pair = TokenBatches(corpus, Format(prompt="p", completion="c"), tokenizer_of()).identity()
    assert "tokens" in pair and "tokens" not in TokenBatches(corpus, TEXT, tokenizer_of()).identity()
