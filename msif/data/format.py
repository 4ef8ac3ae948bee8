"""Which fields of a corpus are read, and as what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from msif.data.corpus import Corpus
from msif.errors import MsifError

Kind = Literal["text", "pair", "messages", "classification"]
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
    """

    text: str | None = None
    prompt: str | None = None
    completion: str | None = None
    messages: str | None = None
    label: str | None = None
    label2id: Mapping[str, int] | None = None
    label_names: tuple[str, ...] | None = None

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
        """The text in a field of a row; only a prompt may be empty, only a completion may be blank."""
        value = row.get(field)
        if field == self.prompt and (value is None or value == ""):
            return ""
        if value is None or value == "" or (field == self.text and isinstance(value, str) and not value.strip()):
            raise MsifError(f"Field '{field}' of {where} is empty; fill it in or leave the row out.")
        if not isinstance(value, str):
            raise MsifError(f"Field '{field}' of {where} is not text but {type(value).__name__}; write it as a string.")
        return value

    def text_of(self, row: Mapping[str, Any], where: str) -> str:
        """What a row says, as one text, for search and display."""
        if self.text is not None:
            return self.read(row, self.text, where)
        if self.messages is not None:
            turns = [message.get("content") for message in row.get(self.messages) or ()]
            return "\n".join(turn for turn in turns if isinstance(turn, str))
        assert self.prompt is not None and self.completion is not None
        return join_texts(self.read(row, self.prompt, where), self.read(row, self.completion, where))

    def texts(self, corpus: Corpus) -> list[str]:
        """What each row of a corpus says."""
        return [self.text_of(row, f"row {index}") for index, row in corpus.rows(columns=self.columns)]

    def label_of(self, row: Mapping[str, Any], where: str) -> int:
        """The class index of a row; names and indices are both understood."""
        assert self.label is not None
        return label_index(row.get(self.label), where, self.label2id, self.label_names)


def join_texts(prompt: str, completion: str | None) -> str:
    """Prompt and completion with one space between them."""
    return " ".join(part for part in (prompt.strip(), (completion or "").strip()) if part)


def label_index(
    value: Any, where: str, label2id: Mapping[str, int] | None = None, label_names: Sequence[str] | None = None
) -> int:
    """The class index that a label stands for.

    An integer of a dataset whose class names are all known to the classifier goes through its name, since the two
    may count in different orders.

    Raises:
        MsifError: no label, a name that the classifier does not know, an index out of range.
    """
    known = dict(label2id or {})
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str) and value not in known and value.strip().isdecimal():
        value = int(value)  # CSV holds text only
    if value is None or value == "":
        raise MsifError(f"The label of {where} is empty; fill it in or leave the row out.")
    if isinstance(value, str):
        if value in known:
            return known[value]
        names = ", ".join(known) if known else "none, so labels must be integers"
        raise MsifError(f"The label of {where} is '{value}', which the model does not know: its labels are {names}.")
    if not isinstance(value, int):
        raise MsifError(f"The label of {where} is {type(value).__name__}; write the class's name or index.")
    value = int(value)
    if label_names is not None and 0 <= value < len(label_names) and all(name in known for name in label_names):
        return known[label_names[value]]
    if value < 0 or (known and value not in known.values()):
        there = f": its labels are {sorted(known.values())}" if known else ""
        raise MsifError(f"The label of {where} is {value}, which the model does not know{there}.")
    return value


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
        chosen = Format(text=text_field or "text", label=label_field or "label", label2id=label2id)
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
    return Format(text=chosen.text, label=chosen.label, label2id=label2id, label_names=corpus.label_names(chosen.label))


def _by_names(corpus: Corpus) -> Format:
    """The format whose fields the first rows have, or else any rows."""
    known = (Format(text="text"), Format(prompt="prompt", completion="completion"), Format(messages="messages"))
    for has in (corpus.head.__contains__, corpus.has):
        for format in known:
            if all(has(field) for field in format.columns):
                return format
    return known[0]  # not there: the check of its field says what is


def check_rows(corpus: Corpus, format: Format) -> None:
    """Before expensive work: every row has the texts, turns and labels that it needs.

    Of a stream only the first row is looked at; later ones are checked as they arrive.

    Raises:
        MsifError: names the first row that lacks something.
    """
    for index, row in corpus.rows(None if corpus.size is not None else [0], columns=format.columns):
        where = corpus.where(index)
        for field in (format.text, format.prompt, format.completion):
            if field is not None:
                format.read(row, field, where)
        if format.label is not None:
            format.label_of(row, where)
        if format.messages is not None:
            check_messages(row[format.messages], where)


def check_messages(messages: Any, where: str) -> list[dict[str, Any]]:
    """The turns of a conversation, without the empty keys that a columnar table adds."""
    turns = isinstance(messages, Sequence) and not isinstance(messages, str)
    if not turns or not all(isinstance(turn, Mapping) and "role" in turn for turn in messages):
        raise MsifError(f'The messages of {where} must be a list of {{"role": ..., "content": ...}}; rewrite them.')
    if not any(turn["role"] == "assistant" for turn in messages):
        raise MsifError(f"The messages of {where} hold no assistant turn to explain; leave the row out.")
    return [{key: value for key, value in turn.items() if value is not None} for turn in messages]
