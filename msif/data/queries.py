"""Queries: the answers, or predictions, that are to be explained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from msif.data.corpus import load_corpus
from msif.data.format import Format, join_texts
from msif.data.ids import id_text
from msif.errors import MsifError

if TYPE_CHECKING:
    from msif.data.documents import Document


@dataclass(frozen=True)
class Query:
    """What to explain.

    Attributes:
        id: what results call it.
        prompt: what the model read; for a classifier the whole text.
        completion: what it said; None has it answered by the model first.
        label: the class, by name or index; None has it predicted by the model first.
    """

    id: str
    prompt: str
    completion: str | None = None
    label: int | str | None = None

    @property
    def text(self) -> str:
        """Prompt and completion, for search."""
        return join_texts(self.prompt, self.completion)


def load_queries(path: str, task: str = "lm") -> list[Query]:
    """Queries from a file (JSON Lines, JSON, CSV, Parquet).

    A language model's have fields `prompt` and, optionally, `completion`; a classifier's `text` or `prompt` and,
    optionally, `label`. An `id` is optional; without it a query is called by its row number.

    Raises:
        MsifError: no file, a field that is not there, an empty prompt, two queries of one id.
    """
    corpus = load_corpus(path)
    field = "text" if task == "classification" and "text" in corpus.columns else "prompt"
    if field not in corpus.columns:
        needed = "'text' or 'prompt'" if task == "classification" else "'prompt'"
        raise MsifError(f"Queries in '{path}' need a field {needed}; their fields are {', '.join(corpus.columns)}.")
    reader = Format(text=field)
    queries = []
    for (index, row), id in zip(corpus.rows(), corpus.ids(), strict=True):
        where = f"row {index} of '{path}'"
        prompt = reader.read(row, field, where)
        if task == "classification":
            queries.append(Query(id_text(id), prompt, label=_given(row.get("label"))))
            continue
        completion = _given(row.get("completion"))
        if completion is not None:
            completion = Format(prompt="prompt", completion="completion").read(row, "completion", where)
        queries.append(Query(id_text(id), prompt, completion))
    seen: set[str] = set()
    for query in queries:
        if query.id in seen:
            raise MsifError(f"Two queries in '{path}' have the id '{query.id}'; give each its own.")
        seen.add(query.id)
    return queries


def _given(value: Any) -> Any:
    return None if value is None or value == "" else value


def encode_queries(
    queries: Sequence[Query],
    tokenizer: Any,
    *,
    max_length: int | None = None,
    task: str = "lm",
    label2id: Mapping[str, int] | None = None,
) -> list[Document]:
    """Queries as documents; a document's index is the query's place in the list.

    Raises:
        MsifError: names the query that lacks its completion or label, or whose completion truncation cut off.
    """
    from msif.data.encoding import Encoder

    classify = task == "classification"
    for query in queries:
        if (query.label if classify else query.completion) is None:
            missing = "label" if classify else "completion"
            raise MsifError(f"Query '{query.id}' has no {missing}; give one, or have the model answer first.")
    format = (
        Format(text="prompt", label="label", label2id=label2id)
        if classify
        else Format(prompt="prompt", completion="completion")
    )
    encoder = Encoder(format, tokenizer, max_length, lambda place: f"query '{queries[place].id}'")
    return encoder.encode([(place, vars(query)) for place, query in enumerate(queries)])
