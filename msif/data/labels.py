"""What a label says: a class, a number, or any number of classes."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, get_args

from msif.errors import MsifError

Problem = Literal["single_label_classification", "regression", "multi_label_classification"]
"""What a classification head was trained for, in the words of transformers' ``config.problem_type``."""
PROBLEMS: tuple[Problem, ...] = get_args(Problem)

Label = int | tuple[float, ...]
"""A class index, or one number for each output of the head."""


def read_label(
    value: Any,
    where: str,
    problem: Problem = "single_label_classification",
    label2id: Mapping[str, int] | None = None,
    label_names: Sequence[str] | None = None,
) -> Label:
    """A row's label for a head of ``problem``: a class index; K numbers; 0 or 1 for each of K classes.

    K outputs are those that ``label2id`` (``model.config.label2id``) counts; without it as many as are given.

    Args:
        where: how a message names the row.
        label_names: the dataset's own class names, in the order of its integer labels, where it declares them.

    Raises:
        MsifError: no label, or one that the head does not know or that can be read in two ways.
    """
    tolist = getattr(value, "tolist", None)  # NumPy's and torch's numbers and arrays
    value = tolist() if tolist is not None else value
    if value is None or value == "":
        raise MsifError(f"The label of {where} is empty; fill it in or leave the row out.")
    if problem == "regression":
        return _numbers(value, where, _outputs(label2id))
    if problem == "multi_label_classification":
        return _classes(value, where, label2id, label_names)
    return label_index(value, where, label2id, label_names)


def describe_label(label: Any) -> str:
    """A label in a sentence: a class, several, or what a regression gives."""
    if isinstance(label, float):
        return f"value {label:.4g}"
    if isinstance(label, (list, tuple)):
        if label and all(isinstance(item, float) for item in label):
            return "values " + ", ".join(f"{item:.4g}" for item in label)
        return f"class{'es' * (len(label) > 1)} {', '.join(map(str, label))}" if label else "no class"
    return f"class {label}"


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
    value = _number_of(value, known)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or value == "":
        raise MsifError(f"The label of {where} is empty; fill it in or leave the row out.")
    if isinstance(value, str):
        if value in known:
            return known[value]
        names = ", ".join(known) if known else "none, so labels must be integers"
        raise MsifError(f"The label of {where} is '{value}', which the model does not know: its labels are {names}.")
    if isinstance(value, (list, tuple)):
        raise MsifError(
            f"The label of {where} is a list, and the model predicts one class: write its name or index, or, if the "
            'model was trained on several labels a text, "problem_type": "multi_label_classification" into its '
            "config.json."
        )
    if not isinstance(value, int):
        raise MsifError(f"The label of {where} is {type(value).__name__}; write the class's name or index.")
    value = int(value)
    if label_names is not None and 0 <= value < len(label_names) and all(name in known for name in label_names):
        return known[label_names[value]]
    if value < 0 or (known and value not in known.values()):
        there = f": its labels are {sorted(known.values())}" if known else ""
        raise MsifError(f"The label of {where} is {value}, which the model does not know{there}.")
    return value


def _numbers(value: Any, where: str, count: int | None) -> tuple[float, ...]:
    """One number for each output of a regression head."""
    found, _ = _listed(value, where)
    numbers = []
    for item in found:
        try:
            number = float(item)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise MsifError(f"The label of {where} is {item!r}; the model is a regression, so write a finite number.")
        numbers.append(number)
    if count is not None and len(numbers) != count:
        raise MsifError(f"The label of {where} is {len(numbers)} number(s), and the model has {count} output(s).")
    return tuple(numbers)


def _classes(
    value: Any, where: str, label2id: Mapping[str, int] | None, label_names: Sequence[str] | None
) -> tuple[float, ...]:
    """0 or 1 for each class, from names, from indices, or from a list of so many 0 and 1 (or shares between them)."""
    items, several = _listed(value, where)
    known = dict(label2id or {})
    items = [_number_of(item, known) for item in items]
    count = _outputs(label2id) or len(items)
    vector = several and len(items) == count and all(_is_share(item) for item in items)
    indices = all(type(item) is int for item in items) and len(set(items)) == len(items)
    declared = label_names is not None and indices
    if vector and indices and items != [1] and not declared:
        raise MsifError(
            f"The label of {where} is {items}, which can be read as classes or as 0 and 1 for each class; write the "
            "classes' names, or 0.0 and 1.0."
        )
    if vector and not declared:
        return tuple(float(item) for item in items)
    if label2id is None:
        raise MsifError(f"The label of {where} is no list of 0 and 1, and the model's classes are not known.")
    chosen = [label_index(item, where, label2id, label_names) for item in items]
    if len(set(chosen)) < len(chosen):
        raise MsifError(
            f"The label of {where} names a class twice; write each once, or {count} times 0 or 1, one for each class."
        )
    return tuple(float(index in chosen) for index in range(count))


def _listed(value: Any, where: str) -> tuple[list[Any], bool]:
    """The items of a label, and whether it is a list: also one that CSV holds as text, as JSON, Python or NumPy print
    it."""
    if isinstance(value, str) and value.strip()[:1] in ("[", "("):
        value = _parsed(value.strip(), where)
    if isinstance(value, (list, tuple)):
        if any(item is None for item in value):
            raise MsifError(f"The label of {where} has an empty entry; fill it in or leave the row out.")
        return list(value), True
    return [value], False


def _parsed(text: str, where: str) -> Any:
    with suppress(ValueError):
        return json.loads(text)
    with suppress(ValueError, SyntaxError):
        return ast.literal_eval(text)
    with suppress(ValueError):
        return [float(number) for number in text.strip("[]").split()]
    raise MsifError(f'The label of {where} is \'{text}\'; write a list as JSON does, such as [0, 1] or ["a", "b"].')


def _number_of(item: Any, known: Mapping[str, int]) -> Any:
    """A number that CSV holds as text, unless a class is called so."""
    if not isinstance(item, str) or item in known:
        return item
    for kind in (int, float):
        with suppress(ValueError):
            return kind(item)
    return item


def _is_share(item: Any) -> bool:
    return isinstance(item, (int, float)) and 0 <= item <= 1


def _outputs(label2id: Mapping[str, int] | None) -> int | None:
    return 1 + max(label2id.values()) if label2id else None
