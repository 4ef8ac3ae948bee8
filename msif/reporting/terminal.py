"""The tables that the influence command prints."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from msif.attribution.results import Shown

WORDS = 4
# would move the cursor or change its colours
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


def print_query(prompt: str, answer: str, shown: Sequence[Shown], console: Console | None = None) -> None:
    """One query's proponents and opponents, with the words that carry most of each score where these are known."""
    console = console or Console(width=None if Console().is_terminal else 120)
    console.print()
    console.print(Text.assemble(("query  ", "bold"), _in_a_line(prompt)))
    console.print(Text.assemble(("answer ", "bold"), _in_a_line(answer)))
    for kind in ("proponent", "opponent"):
        rows = [document for document in shown if document.kind == kind]
        if rows:
            console.print(_table(kind, rows))


def _table(kind: str, rows: Sequence[Shown]) -> Table:
    table = Table(title=f"{kind}s", title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("rank", justify="right")
    table.add_column("score", justify="right")
    table.add_column("document", no_wrap=True)
    table.add_column("text", ratio=3)
    explained = any(document.tokens for document in rows)  # not every method has parts
    if explained:
        table.add_column("words that carry it", ratio=1)
    for document in rows:
        text = _in_a_line(document.text)
        excerpt = text if len(text) <= 200 else f"{text[:197]}..."
        cells = [str(document.rank), f"{document.score:.4g}", _in_a_line(str(document.candidate_id)), excerpt]
        if explained:
            cells.append(", ".join(map(_in_a_line, strongest_words(document))))
        table.add_row(*map(Text, cells))  # as they are: a string would be read for markup
    return table


def _in_a_line(text: str) -> str:
    """White space as single spaces, and a mark in place of other control characters."""
    return _CONTROL.sub("\ufffd", " ".join(text.split()))


def strongest_words(document: Shown) -> list[str]:
    """The tokens with the largest parts of the score's sign, largest first, each once."""
    sign = 1.0 if document.score >= 0 else -1.0
    ordered = sorted(document.tokens, key=lambda part: -sign * part[1])
    words = [token.strip() for token, part in ordered if token.strip() and sign * part > 0]
    return list(dict.fromkeys(words))[:WORDS]
