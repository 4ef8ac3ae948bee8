"""Nulls in the arguments of tools: kept as they were written, dropped where a table's schema may have added them."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from msif.data.batching import TokenBatches
from msif.data.corpus import as_corpus, load_corpus
from msif.data.encoding import Encoder
from msif.data.format import Format
from msif.data.queries import as_queries, load_queries

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}{% for call in m.tool_calls or [] %}"
    "{{ call['function']['arguments'] | tojson }}{% endfor %}{{ m['content'] }}<|im_end|>{% endfor %}"
)
GIVEN = {"city": "X", "day": None, "in": [{"unit": None}]}
KEPT, DROPPED = json.dumps(GIVEN), '{"city": "X", "in": [{}]}'
CALL = {"type": "function", "id": None, "function": {"name": "rain", "arguments": GIVEN}}
ROW = {
    "messages": [
        {"role": "user", "content": "Rain?", "name": None},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
    ]
}
OTHER = {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "She."}]}


def written(folder, kind):
    """The rows as a source of a kind."""
    path = folder / f"rows.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in (ROW, OTHER)))
    elif kind == "json":
        path.write_text(json.dumps([ROW, OTHER]))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist([ROW, OTHER]), path)
    else:
        Dataset.from_list([ROW, OTHER]).save_to_disk(path)
    return str(path)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("kind", "rendered"), [("jsonl", KEPT), ("json", KEPT), ("parquet", DROPPED), ("saved", DROPPED)]
)
def test_of_data_by_where_they_come_from(tokenizer_of, tmp_path, kind, rendered, streaming):
    tokenizer = tokenizer_of(chat_template=TEMPLATE)
    corpus = load_corpus(written(tmp_path, kind), streaming=streaming)
    batches = TokenBatches(corpus, Format(messages="messages"), tokenizer)
    said = [tokenizer.decode(document.input_ids) for document in batches.documents()]
    assert [text for text in said if rendered in text] == [
        f"<|im_start|>userRain?<|im_end|><|im_start|>assistant{rendered}<|im_end|>"
    ]


@pytest.mark.parametrize(("kind", "kept"), [("jsonl", True), ("json", True), ("parquet", False), ("saved", False)])
def test_of_queries_too(tmp_path, kind, kept):
    asked = load_queries(written(tmp_path, kind))[0]
    turn = asked.messages[1]["tool_calls"][0]
    assert turn["function"]["arguments"] == (GIVEN if kept else json.loads(DROPPED))
    assert "id" not in turn and "name" not in asked.messages[0]  # those that no tool reads go in any case


def test_rows_in_memory_are_as_written_and_a_dataset_is_not(tokenizer_of):
    (query,) = as_queries([ROW])
    assert query.messages[1]["tool_calls"][0]["function"]["arguments"] == GIVEN
    tokenizer = tokenizer_of(chat_template=TEMPLATE)
    (document,) = Encoder(Format(messages="messages"), tokenizer).encode([(0, ROW)])
    assert KEPT in tokenizer.decode(document.input_ids)
    assert as_corpus([ROW, OTHER]).exact and not as_corpus(Dataset.from_list([ROW, OTHER])).exact
