"""Where in a rendered conversation the assistant's turns are.

A template may rewrite earlier turns once later ones are there: it keeps the thinking of the last turn only, or moves
the system message to the last user turn. So turns are looked for in the rendering of the whole conversation. Marks,
characters that occur nowhere in it, are put around what each turn says; where they come out, the turns are. That they
change nothing else is checked: without them, the rendering must be the one that was made without.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
from typing import Any

from msif.data.messages import texts_of
from msif.errors import MsifError, one_line

Messages = Sequence[dict[str, Any]]
Span = tuple[int, int]

PRIVATE = range(0xF0000, 0x10FFFE)  # code points that no text has a meaning for
PRIVATE_CHARACTER = re.compile("[\U000f0000-\U0010fffd]")
# a template's own mark of what the assistant writes; its blanks go as Jinja would take them
BEGIN = re.compile(r"(\{%[-+]?\s*generation\s*)(?:(-%\})|(\+%\})|%\}\n?)")
END = re.compile(r"(?:(\{%-)|(\{%\+)|(?:(?<=\n)[ \t]*)?\{%)(\s*endgeneration\s*[-+]?%\})")
PIECE = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]|\w+|.", re.DOTALL)  # a control token, a word, or a character


def render(tokenizer: Any, messages: Messages, where: str, **options: Any) -> str:
    """A conversation as text, by the chat template."""
    if not getattr(tokenizer, "chat_template", None):
        raise MsifError("The tokenizer has no chat template, which messages need; set tokenizer.chat_template.")
    try:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, **options)
    except Exception as error:  # templates raise what they like
        reason = one_line(error)
        raise MsifError(f"The chat template does not take the messages of {where} ({reason}); mend the row.") from error
    for turn, message in enumerate(messages):
        content = message.get("content")
        if isinstance(content, list) and content and str(content) in text:
            raise MsifError(
                f"The chat template takes texts only, and writes the parts of turn {turn} of {where} out as a Python "
                "list; give its content as a text."
            )
    return text


def assistant_spans(tokenizer: Any, messages: Messages, where: str, last_only: bool = False) -> tuple[str, list[Span]]:
    """A conversation as text, and from where to where each assistant turn goes in it, in characters.

    A template with `{% generation %}` marks says itself what the assistant writes. For any other, a turn begins where
    its header, the generation prompt, ends, and goes on to the end of its end mark.

    Raises:
        MsifError: names the row and the turn that cannot be found.
    """
    whole = render(tokenizer, messages, where)
    spans = _tagged(tokenizer, messages, whole, where)
    if spans is None:
        turns = [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]
        conversation = _Marked.of(tokenizer, messages, whole, where)
        return whole, [conversation.span(turn) for turn in (turns[-1:] if last_only else turns)]
    if last_only and messages[:-1]:  # those that are not there without the last turn
        earlier = render(tokenizer, messages[:-1], where)
        spans = spans[len(_tagged(tokenizer, messages[:-1], earlier, where) or []) :]
    return whole, spans


def _tagged(tokenizer: Any, messages: Messages, whole: str, where: str) -> list[Span] | None:
    """What the template itself says that the assistant writes; None if it says nothing."""
    template = tokenizer.get_chat_template()
    if not BEGIN.search(template):
        return None
    unused = _unused(whole)
    begin, end = next(unused), next(unused)
    marked = render(tokenizer, messages, where, chat_template=_with_marks(template, begin, end))
    plain, places = _without(marked, {begin, end})
    if plain != whole:
        return None
    starts = [place for mark, place in places if mark == begin]
    return list(zip(starts, [place for mark, place in places if mark == end], strict=True))


@lru_cache(maxsize=8)
def _with_marks(template: str, begin: str, end: str) -> str:
    """The template with marks inside its generation tags; blanks at the tags go as Jinja takes them there."""

    def after(tag: re.Match[str]) -> str:
        opening, trims, keeps = tag.groups()
        return opening + (trims or keeps or "%}") + f'{{{{ "{begin}" {"-" if trims else ""}}}}}'

    def before(tag: re.Match[str]) -> str:
        trims, _, closing = tag.groups()
        return f'{{{{{"-" if trims else ""} "{end}" }}}}{{%{closing}'

    return END.sub(before, BEGIN.sub(after, template))


@dataclass(frozen=True)
class _Marked:
    """A conversation with marks around what its turns say, and its rendering without them.

    Attributes:
        messages: the turns, with the marks.
        marks: those at the beginning and end of each turn, whether it took them or not.
        whole: the rendering of all turns, without marks.
        places: where in it the marks were, of those that came out once.
    """

    tokenizer: Any
    messages: Messages
    marks: list[tuple[str, str]]
    whole: str
    places: dict[str, int]
    where: str

    @classmethod
    def of(cls, tokenizer: Any, messages: Messages, whole: str, where: str) -> _Marked:
        """With as many turns marked as leaves the rendering as it is: some templates look at what users say."""
        for roles in (None, {"assistant"}, set[str]()):
            unused = _unused(whole)
            marks = [(next(unused), next(unused)) for _ in messages]
            marked = [
                _enclosed(turn, *pair) if roles is None or turn["role"] in roles else turn
                for turn, pair in zip(messages, marks, strict=True)
            ]
            try:
                plain, found = _without(render(tokenizer, marked, where), {mark for pair in marks for mark in pair})
            except MsifError:
                continue
            if plain == whole:
                break
        times = Counter(mark for mark, _ in found)
        return cls(tokenizer, marked, marks, whole, {mark: at for mark, at in found if times[mark] == 1}, where)

    def span(self, turn: int) -> Span:
        """From the end of a turn's header to the end of its end mark."""
        said = self.places.get(self.marks[turn][0])
        start, stop = said, self._reach(turn + 1)
        if turn:
            header = self._reach(turn, add_generation_prompt=True)
            start = min((place for place in (header, said) if place is not None), default=None)
        if start is None or stop is None or start > stop:
            raise MsifError(
                f"The chat template rewrites earlier turns of {self.where} so that turn {turn} cannot be found in the "
                "whole; put {% generation %} marks into the template, or give prompt and completion fields."
            )
        return start, stop

    def _reach(self, turns: int, **options: Any) -> int | None:
        """Where in the whole the rendering of its first turns ends: so far they are alike after the last mark of both.

        After the end of what the last of these turns says they may differ in the end, since a template may close the
        last turn otherwise, or open the next with a thought. After another mark they may not.
        """
        rendered = render(self.tokenizer, self.messages[:turns], self.where, **options)
        plain, found = _without(rendered, {mark for pair in self.marks for mark in pair})
        mark, place = next(((mark, place) for mark, place in reversed(found) if mark in self.places), ("", 0))
        rest, here = plain[place:], self.places.get(mark, 0)
        if self.whole.startswith(rest, here):
            return here + len(rest)
        at_end = mark == self.marks[turns - 1][1] and texts_of(self.messages[turns - 1].get("content"))
        return here + _shared(rest, self.whole[here:]) if at_end else None


def _shared(left: str, right: str) -> int:
    """How many characters two texts share at their beginnings, in whole words and control tokens."""
    pieces = zip(PIECE.finditer(left), PIECE.finditer(right), strict=False)
    return sum(len(one[0]) for one, _ in takewhile(lambda pair: pair[0][0] == pair[1][0], pieces))


def _unused(text: str) -> Iterator[str]:
    """Characters that do not occur in a text."""
    there = set(text)
    return (chr(point) for point in PRIVATE if chr(point) not in there)


def _without(text: str, marks: set[str]) -> tuple[str, list[tuple[str, int]]]:
    """A text without marks, and each mark's place in it, in order."""
    found = [match for match in PRIVATE_CHARACTER.finditer(text) if match[0] in marks]
    places = [(match[0], match.start() - number) for number, match in enumerate(found)]
    return PRIVATE_CHARACTER.sub(lambda match: "" if match[0] in marks else match[0], text), places


def _enclosed(turn: dict[str, Any], begin: str, end: str) -> dict[str, Any]:
    """A turn with marks around what it says; one that only calls a tool has a mark after the tool's name.

    They are inside of its outer blanks, which a template may strip.
    """
    content: Any = turn.get("content")
    calls: Any = turn.get("tool_calls")
    if isinstance(content, str) and content.strip():
        return {**turn, "content": _between(content, begin, end)}
    if any(map(str.strip, texts_of(content))):
        said = [place for place, part in enumerate(content) if any(map(str.strip, texts_of([part])))]
        parts = list(content)
        for place, marks in ((said[0], (begin, "")), (said[-1], ("", end))):
            parts[place] = {**parts[place], "text": _between(parts[place]["text"], *marks)}
        return {**turn, "content": parts}
    if isinstance(calls, list) and calls and isinstance(calls[-1], dict):
        *others, last = calls
        call = last.get("function", last)
        if isinstance(call, dict) and isinstance(call.get("name"), str):
            named = {**call, "name": call["name"] + end}
            return {**turn, "tool_calls": [*others, {**last, "function": named} if "function" in last else named]}
    return turn


def _between(text: str, begin: str, end: str) -> str:
    first, last = len(text) - len(text.lstrip()), len(text.rstrip())
    return f"{text[:first]}{begin}{text[first:last]}{end}{text[last:]}"
