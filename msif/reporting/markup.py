"""HTML elements as strings in which everything that is not markup is escaped."""

from __future__ import annotations

import html
import re

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_VOID = ("meta", "br")


class Markup(str):
    """HTML; every other string is text, and is escaped where it stands in an element."""


def escaped(text: str) -> Markup:
    """Text as HTML, with a mark in place of control characters, which HTML does not allow."""
    return text if isinstance(text, Markup) else Markup(html.escape(_CONTROL.sub("\ufffd", text)))


def element(name: str, /, *children: str, **attributes: str | bool) -> Markup:
    """<name attributes>children</name>; ``class_`` is the attribute class, True one without a value."""
    given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not False}
    shown = "".join(f" {key}" if value is True else f' {key}="{escaped(str(value))}"' for key, value in given.items())
    if name in _VOID:
        return Markup(f"<{name}{shown}>")
    return Markup(f"<{name}{shown}>{''.join(map(escaped, children))}</{name}>")


def join(parts: list[Markup], between: str = "\n") -> Markup:
    return Markup(escaped(between).join(parts))
