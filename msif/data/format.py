"""Which fields of a corpus are read, and as what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from msif.data.corpus import Corpus
from msif.data.labels import Label, Problem, read_label
from msif.data.labels import label_index as label_index  # where it was looked for
from msif.data.messages import check_messages, say_messages
from msif.errors import MsifError

Kind = Literal["text", "pair", "messages", "classification"]
FIELDS = ("text_field", "prompt_field", "completion_field", "messages_field", "label_field")
FLAGS = {
    "text": "--text-field",
    "prompt": "--prompt-field",
    "completion": "--completion-field",
    "messages": "--messages-field",
    "label": "--label-field",
}


@dataclass(frozen=True)
class Format:
    """The fields of a row that make a document: text, prompt and completion, messages, or text and label.

    Attributes:
        text, prompt, completion, messages, label: names of fields, None for those not in use.
        label2id: the classifier's class names (``model.config.label2id``).
        label_names: the dataset's own class names, in the order of its integer labels, where it declares them.
        problem: what the classifier's head was trained for.
    """

    text: str | None = None
    prompt: str | None = None
    completion: str | None = None
    messages: str | None = None
    label: str | None = None
    label2id: Mapping[str, int] | None = None
    label_names: tuple[str, ...] | None = None
    problem: Problem = "single_label_classification"

    @property
    def kind(self) -> Kind:
        if self.label is not None:
            return "classification"
        if self.messages is not None:
            return "messages"
        return "text" if self.text is not None else "pair"

    @property
    def columns(self) -> tuple[str, ...]:
        """The fields in use."""
        fields = (self.text, self.prompt, self.completion, self.messages, self.label)
        return tuple(field for field in fields if field is not None)

    def read(self, row: Mapping[str, Any], field: str, where: str) -> str:
        """The text in a field of a row; a missing one is empty."""
        value = row.get(field)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise MsifError(f"Field '{field}' of {where} is not text but {type(value).__name__}; write it as a string.")
        return value

    def lacks(self, row: Mapping[str, Any], where: str) -> str | None:
        """Why a row has nothing to predict, as a sentence: no text, completion or assistant's turn; None if it has.

        A prompt may be empty, and a completion blank.

        Raises:
            MsifError: a field holds something of another type.
        """
        if self.messages is not None:
            messages = check_messages(row.get(self.messages), where)
            if messages and not any(turn["role"] == "assistant" for turn in messages):
                return f"The messages of {where} hold no assistant turn to explain; leave the row out."
            field, filled = self.messages, bool(messages)
        elif self.text is not None:
            field = self.text
            filled = bool(self.read(row, field, where).strip())
        else:
            assert self.prompt is not None and self.completion is not None
            self.read(row, self.prompt, where)
            field = self.completion
            filled = bool(self.read(row, field, where))
        return None if filled else f"Field '{field}' of {where} is empty; fill it in or leave the row out."

    def text_of(self, row: Mapping[str, Any], where: str) -> str:
        """What a row says, as one text, for search and display; "" of an empty one."""
        if self.text is not None:
            return self.read(row, self.text, where)
        if self.messages is not None:
            return say_messages(check_messages(row.get(self.messages), where))
        assert self.prompt is not None and self.completion is not None
        return join_texts(self.read(row, self.prompt, where), self.read(row, self.completion, where))

    def texts(self, corpus: Corpus) -> list[str]:
        """What each row of a corpus says."""
        return [self.text_of(row, f"row {index}") for index, row in corpus.rows(columns=self.columns)]

    def label_of(self, row: Mapping[str, Any], where: str) -> Label:
        """The label of a row, as the classifier's head takes it."""
        assert self.label is not None
        return read_label(row.get(self.label), where, self.problem, self.label2id, self.label_names)


def join_texts(prompt: str, completion: str | None) -> str:
    """Prompt and completion with one space between them."""
    return " ".join(part for part in (prompt.strip(), (completion or "").strip()) if part)


def choose_format(
    corpus: Corpus,
    *,
    task: str = "lm",
    text_field: str | None = None,
    prompt_field: str | None = None,
    completion_field: str | None = None,
    messages_field: str | None = None,
    label_field: str | None = None,
    label2id: Mapping[str, int] | None = None,
    problem: Problem = "single_label_classification",
) -> Format:
    """The format that the command line's field names ask for, checked against the corpus's columns.

    Where nothing is named, a field `text` is taken, else `prompt` and `completion`, else `messages`. The fields are
    opened for reading, so that files that cannot be read are known here.

    Raises:
        MsifError: fields that contradict each other, or that are not there.
    """
    pair = prompt_field or completion_field
    if task == "classification":
        if pair or messages_field:
            raise MsifError("A classifier reads one text; name it with --text-field, without prompt or messages.")
        chosen = Format(text=text_field or "text", label=label_field or "label")
    elif label_field:
        raise MsifError(f"--label-field {label_field} needs --task classification.")
    elif sum(bool(given) for given in (text_field, pair, messages_field)) > 1:
        raise MsifError("Give either --text-field, or --prompt-field and --completion-field, or --messages-field.")
    elif pair:
        chosen = Format(prompt=prompt_field or "prompt", completion=completion_field or "completion")
    elif messages_field:
        chosen = Format(messages=messages_field)
    elif text_field:
        chosen = Format(text=text_field)
    else:
        chosen = _by_names(corpus)
    for role, flag in FLAGS.items():
        field = getattr(chosen, role)
        if field is not None:
            corpus.require(field, flag)
    corpus.prepare(chosen.columns)
    if chosen.label is None:
        return chosen
    return replace(chosen, label2id=label2id, label_names=corpus.label_names(chosen.label), problem=problem)


def _by_names(corpus: Corpus) -> Format:
    """The format whose fields the first rows have, or else any rows."""
    known = (Format(text="text"), Format(prompt="prompt", completion="completion"), Format(messages="messages"))
    for has in (corpus.head.__contains__, corpus.has):
        for format in known:
            if all(has(field) for field in format.columns):
                return format
    return known[0]  # not there: the check of its field says what is


# rows of a corpus that are looked at one by one in seconds
CHECKED_ROWS = 1_000_000


def soon_checked(corpus: Corpus) -> bool:
    """Whether ``check_rows`` takes seconds at most, so that an estimate can wait for it."""
    return corpus.size is None or corpus.size <= CHECKED_ROWS


def check_rows(corpus: Corpus, format: Format) -> None:
    """Before expensive work: every row's fields are of their types, and its label is known.

    Rows that are empty are left to be skipped. Of a stream only the first row is looked at; later ones are checked as
    they arrive.

    Raises:
        MsifError: names the first row with a field of a wrong type or an unknown label; all rows are empty.
    """
    filled = False
    for index, row in corpus.rows(None if corpus.size is not None else [0], columns=format.columns):
        where = corpus.where(index)
        if format.lacks(row, where) is not None:
            continue
        filled = True
        if format.label is not None:
            format.label_of(row, where)
    if corpus.size is not None and not filled:
        fields = " and ".join(f"'{field}'" for field in format.columns)
        raise MsifError(f"Every row of '{corpus.name}' is empty in its field {fields}; choose other fields or data.")
