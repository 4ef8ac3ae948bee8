"""One shown document of an influence run as HTML: its words, its score, and the blocks that carry it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msif.models.names import layer_of
from msif.reporting.markup import Markup, element, join
from msif.reporting.words import Word, strongest, words

STRONGEST = 5  # words and blocks that are named
PRINTED_LAYERS = 12  # of fewer layers the cells have room for numbers
NAMED = 0.01  # of the score: smaller parts are not named
FAINT = 0.02  # of the largest part: no colour below it
UNREAD = 600  # characters shown of what the model did not read


def document_card(row: Mapping[str, Any], largest: float, is_open: bool) -> Markup:
    """The card of a row of top.jsonl.

    Args:
        largest: the largest magnitude of a score on the page's list, for the bar's length.
        is_open: whether the blocks are shown without a click.
    """
    score = float(row["score"])
    side = "pro" if row["kind"] == "proponent" else "opp"
    head = element(
        "p",
        element("strong", f"rank {row['rank']}"),
        element("code", str(row["candidate_id"])),
        element("span", f"score {score:.4g}", class_="score"),
        element("span", element("i", style=f"--w:{abs(score) / largest:.3f}"), class_="bar", aria_hidden="true"),
        class_="head",
    )
    parts = [head]
    if row["tokens"]:
        units = words(row["text"], [(str(token), float(part)) for token, part in row["tokens"]])
        parts += [element("p", *_coloured(units, score), class_="text", dir="auto"), _carried(units, score)]
    else:
        parts.append(element("p", row["text"], class_="text", dir="auto"))
    if row["blocks"]:
        parts.append(_blocks(row["blocks"], score, is_open))
    return element("article", *parts, class_=side)


def _coloured(units: Sequence[Word], score: float) -> Iterable[Markup | str]:
    """Each word on a tint as strong as its part beside the document's largest; its share of the score on hover."""
    largest = max((abs(unit.part) for unit in units if unit.part is not None), default=0.0)
    for number, unit in enumerate(units):
        yield unit.space
        if unit.part is None:
            more = len(unit.text) - UNREAD
            yield element("span", unit.text[:UNREAD], class_="unread", title="beyond the longest length: not read")
            if more > 0:
                yield element("span", f" ... and {more:,} more characters", class_="unread")
            continue
        title = f"{share(unit.part, score)} ({unit.part:.3g})"
        if number + 1 < len(units) and units[number + 1].part is not None:
            title += f", predicting “{units[number + 1].text}”"
        yield tint("span", unit.text, unit.part, largest, title)


def tint(name: str, text: str, part: float, largest: float, title: str) -> Markup:
    """An element in the colour of a part's sign, as strong as it is large."""
    strength = abs(part) / largest if largest > 0 else 0.0
    if strength < FAINT:
        return element(name, text, title=title)
    return element(name, text, class_="p" if part > 0 else "o", style=f"--w:{strength:.2f}", title=title)


def share(part: float, score: float) -> str:
    """A part as a signed percentage of the score's size."""
    return f"{percent(part / abs(score), 1)} of the score" if score else f"{part:.3g}"


def _carried(units: Sequence[Word], score: float) -> Markup:
    """The strongest words in numbers, for those who do not hover."""
    named = [
        f"{text} {percent(part / abs(score))}"
        for text, part in strongest(units, score, STRONGEST)
        if score and abs(part) >= NAMED * abs(score)
    ]
    return element("p", "Carried by: ", " · ".join(named), class_="carried") if named else Markup("")


def _blocks(blocks: Mapping[str, float], score: float, is_open: bool) -> Markup:
    strongest = sorted(blocks.items(), key=lambda block: -abs(block[1]))[:STRONGEST]
    named = " · ".join(f"{name} {percent(part / abs(score))}" for name, part in strongest) if score else ""
    return element(
        "details",
        element("summary", "Layers and maps that carry it"),
        element("div", strip(blocks, score), class_="scroll"),
        element("p", "Strongest blocks: ", named, class_="soft"),
        open=is_open,
    )


def strip(blocks: Mapping[str, float], score: float) -> Markup:
    """A row for each kind of map and a column for each layer; heads of one role are added up."""
    cells: dict[tuple[str, int | None], float] = {}
    for name, part in blocks.items():
        kind, layer = kind_and_layer(name)
        cells[kind, layer] = cells.get((kind, layer), 0.0) + part
    kinds = sorted({kind for kind, _ in cells}, key=_in_order)
    layers = sorted({layer for _, layer in cells}, key=lambda layer: -1 if layer is None else layer)
    largest = max((abs(part) for part in cells.values()), default=0.0)
    header = [element("th", "–" if layer is None else str(layer), scope="col") for layer in layers]
    rows = [element("tr", element("th", "layer"), *header)]
    body = []
    for kind in kinds:
        row = [element("th", kind, scope="row")]
        for layer in layers:
            place = f"{kind}, layer {layer}"
            row.append(_cell(cells.get((kind, layer)), score, largest, place, len(layers) <= PRINTED_LAYERS))
        body.append(element("tr", *row))
    return element("table", element("thead", *rows), element("tbody", join(body)), class_="strip")


def _cell(part: float | None, score: float, largest: float, place: str, printed: bool) -> Markup:
    if part is None:
        return element("td")
    number = percent(part / abs(score)) if printed and score else ""
    return tint("td", number, part, largest, f"{place}: {share(part, score)}")


def kind_and_layer(block: str) -> tuple[str, int | None]:
    """ "layers.2.attention.query_key_value:k5" -> ("attention k", 2), "h.3.mlp.c_fc" -> ("mlp.c_fc", 3)."""
    module, _, label = block.partition(":")
    parts = module.split(".")
    parent = [part for part in parts[-2:-1] if not part.isdigit()]
    role = re.sub(r"\d+$", "", label)
    return (" ".join([*parent, role]) if role else ".".join([*parent, parts[-1]])), layer_of(module)


def _in_order(kind: str) -> tuple[str, int, str]:
    """The maps of one module together, its q, k and v first."""
    parent = re.split(r"[ .]", kind)[0]
    return parent, "qkv".find(kind[-1]) if " " in kind else 3, kind


def percent(value: float, digits: int = 0) -> str:
    """A signed percentage, without a sign where it rounds to zero."""
    shown = f"{value:+.{digits}%}"
    return shown if re.search("[1-9]", shown) else shown[1:]
