"""Queries: the answers, or predictions, that are to be explained."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from msif.data.corpus import load_corpus
from msif.data.format import Format, join_texts
from msif.data.ids import id_text
from msif.data.labels import Problem, read_label
from msif.data.messages import check_messages, say_messages
from msif.errors import MsifError, some_of

if TYPE_CHECKING:
    from msif.data.documents import Document
    from msif.data.encoding import Encoder
    from msif.data.tally import Strict

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Query:
    """What to explain.

    Attributes:
        id: what results call it.
        prompt: what the model read; for a classifier the whole text; of a conversation what was said so far.
        completion: what it said; None has it answered by the model first.
        label: what a row of data may have as one (a class's name or index, a number, a list); None has it predicted by
            the model first.
        messages: the conversation, which the chat template renders; its last turn is the completion, if there is one.
        prompt_ids, completion_ids: the tokens that the model was given and those that it answered, of its own answer.
    """

    id: str
    prompt: str
    completion: str | None = None
    label: Any = None
    messages: Sequence[dict[str, Any]] | None = None
    prompt_ids: Sequence[int] | None = None
    completion_ids: Sequence[int] | None = None

    @property
    def text(self) -> str:
        """Prompt and completion, for search."""
        return join_texts(self.prompt, self.completion)

    @property
    def answered(self) -> bool:
        """Whether there is something to explain already."""
        return self.completion is not None or self.label is not None


def as_queries(queries: Any, task: str = "lm") -> list[Query]:
    """Whatever a user has as queries: a file, prompts, (prompt, completion) pairs, rows of such a file, or ``Query``.

    Raises:
        MsifError: it is none of these, there is no query, or two have one id.
    """
    if isinstance(queries, (Mapping, Query)):
        raise MsifError(f"queries is {type(queries).__name__}: put it into a list.")
    if isinstance(queries, str) and len(queries.split()) > 1 and not os.path.exists(queries):
        raise MsifError(f"there is no file of queries '{shorten(queries, 60)}': put prompts into a list.")
    if isinstance(queries, (str, Path)):
        return load_queries(str(queries), task)
    found = [_as_query(number, query, task) for number, query in enumerate(queries)]
    if not found:
        raise MsifError("there is no query: give at least one prompt.")
    return _distinct(found, "the queries")


def _as_query(number: int, query: Any, task: str) -> Query:
    if isinstance(query, Query):
        return query
    where = f"query {number}"
    if isinstance(query, str):
        query = {"prompt": query}
    elif isinstance(query, Sequence) and len(query) == 2:
        query = dict(zip(("prompt", "label" if task == "classification" else "completion"), query, strict=True))
    if not isinstance(query, Mapping):
        raise MsifError(f"{where} is {type(query).__name__}: give a prompt, a (prompt, completion) pair, or a row.")
    field = "text" if "text" in query and task == "classification" else "prompt"
    read = _labelled if task == "classification" else _asked
    return read(id_text(query["id"]) if "id" in query else str(number), query, field, where)


def load_queries(path: str, task: str = "lm") -> list[Query]:
    """Queries from a file (JSON Lines, JSON, CSV, Parquet).

    A language model's have fields `prompt` and, optionally, `completion`, or else `messages`, a conversation; a
    classifier's `text` or `prompt` and, optionally, `label`. An `id` is optional; without it a query is called by its
    row number.

    Raises:
        MsifError: no file, a field that is not there, an empty prompt, two queries of one id.
    """
    corpus = load_corpus(path)
    classify = task == "classification"
    present = [
        field for field in (("text", "prompt") if classify else ("prompt", "messages")) if field in corpus.columns
    ]
    if not present:
        needed, there = "'text' or 'prompt'" if classify else "'prompt'", some_of(corpus.columns)
        hint = "" if classify else " (a conversation goes into 'messages')"
        raise MsifError(f"Queries in '{path}' need a field {needed}; their fields are {there}{hint}.")
    read = _labelled if classify else partial(_asked, exact=corpus.exact)
    queries = []
    for (index, row), id in zip(corpus.rows(), corpus.ids(), strict=True):
        queries.append(read(id_text(id), row, present[0], f"row {index} of '{path}'"))
    return _distinct(queries, f"'{path}'")


def _distinct(queries: list[Query], where: str) -> list[Query]:
    seen: set[str] = set()
    for query in queries:
        if query.id in seen:
            raise MsifError(f"Two queries in {where} have the id '{query.id}'; give each its own.")
        seen.add(query.id)
    return queries


def _labelled(id: str, row: Mapping[str, Any], field: str, where: str) -> Query:
    return Query(id, _filled(row, field, where), label=_given(row.get("label")))


def _asked(id: str, row: Mapping[str, Any], field: str, where: str, exact: bool = True) -> Query:
    if row.get("messages") is None:
        completion = Format(text="completion").read(row, "completion", where)
        return Query(id, _filled(row, field, where), _given(completion))
    for other in ("prompt", "completion"):
        if _given(row.get(other)) is not None:
            raise MsifError(f"The query in {where} has both messages and a {other}; leave one out.")
    messages = check_messages(row["messages"], where, exact)
    said, answer = messages, ""
    if messages and messages[-1]["role"] == "assistant":
        *said, last = messages
        answer = say_messages([last]) or (json.dumps(last["tool_calls"]) if last.get("tool_calls") else "")
    if not said:
        raise MsifError(f"The messages of {where} ask nothing; give a turn that is to be answered.")
    # an empty last turn is for the model to fill
    return Query(id, say_messages(said), _given(answer), messages=messages if answer else said)


def _filled(row: Mapping[str, Any], field: str, where: str) -> str:
    text = Format(text=field).read(row, field, where)
    if not text.strip():
        raise MsifError(f"Field '{field}' of {where} is empty; fill it in or leave the row out.")
    return text


def _given(value: Any) -> Any:
    missing = value is None or value == "" or (isinstance(value, float) and math.isnan(value))
    return None if missing else value


def with_numbers(queries: Sequence[Query], labels: Mapping[str, Any]) -> list[Query]:
    """A regression's labels as numbers, however they are written.

    Args:
        labels: ``label_arguments`` of the model that is asked.
    """
    if labels.get("problem") != "regression":
        return list(queries)

    def numbered(query: Query) -> Query:
        if query.label is None:
            return query
        numbers = read_label(query.label, f"query '{query.id}'", **labels)
        assert isinstance(numbers, tuple)
        return replace(query, label=list(numbers) if len(numbers) > 1 else numbers[0])

    return [numbered(query) for query in queries]


def ask(query: Query, tokenizer: Any) -> list[int]:
    """The tokens that a model is given to answer a query."""
    from msif.data.chat import chat_prompt
    from msif.data.tokens import prompt_tokens

    if query.messages is not None:
        return chat_prompt(tokenizer, query.messages, f"query '{query.id}'")
    return prompt_tokens(tokenizer, query.prompt)


def encode_queries(
    queries: Sequence[Query],
    tokenizer: Any,
    *,
    max_length: int | None = None,
    task: str = "lm",
    label2id: Mapping[str, int] | None = None,
    problem: Problem = "single_label_classification",
    tell: bool = True,
) -> list[Document]:
    """Queries as documents; a document's index is the query's place in the list.

    The model's own answer keeps its tokens. Otherwise prompt and completion are encoded as a corpus's pairs are, and a
    conversation as messages are, of which the last turn alone is supervised.

    Args:
        tell: warn of queries that truncation explains in part.

    Raises:
        MsifError: names the query that lacks its completion or label, or (UnusableError) whose completion truncation
            cut off.
    """
    from msif.data.encoding import Encoder
    from msif.data.tally import Strict

    classify = task == "classification"
    for query in queries:
        if (query.label if classify else query.completion) is None:
            missing = "label" if classify else "completion"
            raise MsifError(f"Query '{query.id}' has no {missing}; give one, or have the model answer first.")
    format = (
        Format(text="prompt", label="label", label2id=label2id, problem=problem)
        if classify
        else Format(prompt="prompt", completion="completion")
    )
    encoder = Encoder(format, tokenizer, max_length, lambda place: f"query '{queries[place].id}'")
    tally = Strict()
    documents = [_encode(place, query, encoder, tally) for place, query in enumerate(queries)]
    for place, (kept, total) in tally.shortened.items() if tell else ():
        what = "of its text are read" if classify else "of its answer are explained"
        log.warning(
            "query '%s' is cut at --max-length %d: %d of %d tokens %s", queries[place].id, max_length, kept, total, what
        )
    return documents


def _encode(place: int, query: Query, encoder: Encoder, tally: Strict) -> Document:
    from msif.data.chat import encode_chat

    if query.prompt_ids is not None and query.completion_ids is not None:
        given, said = list(query.prompt_ids), list(query.completion_ids)
        return encoder.masked(place, given + said, [False] * len(given) + [True] * len(said), tally)
    if query.messages is not None:
        turns = encode_chat(encoder.tokenizer, query.messages, encoder.describe(place), True)
        return encoder.masked(place, *turns, tally)
    (document,) = encoder.encode([(place, vars(query))], tally)
    return document
