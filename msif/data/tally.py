"""What a pass over a corpus leaves out, counted instead of stopping it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from msif.errors import MsifError, UnusableError


@dataclass
class Tally:
    """Counts of a pass over rows.

    Attributes:
        read: rows that were read.
        blank, first_blank: rows in which nothing can be predicted, and the number of the first of them.
        cut_off, first_cut_off: rows of which truncation leaves nothing to predict, and the first of them.
        cut: documents that truncation shortened and that are used.
    """

    read: int = 0
    blank: int = 0
    first_blank: int | None = None
    cut_off: int = 0
    first_cut_off: int | None = None
    cut: int = 0

    def skip(self, index: int, reason: str, cut_off: bool = False) -> None:
        """Take note of a row that cannot be used."""
        if cut_off:
            self.cut_off += 1
            self.first_cut_off = index if self.first_cut_off is None else self.first_cut_off
        else:
            self.blank += 1
            self.first_blank = index if self.first_blank is None else self.first_blank

    def shorten(self, index: int, kept: int, total: int) -> None:
        """Take note of a document that is used without its end, and of what is kept of it."""
        self.cut += 1

    def check(self, name: str, max_length: int | None) -> None:
        """Raise MsifError if no row could be used."""
        if not self.read or self.blank + self.cut_off < self.read:
            return
        if self.cut_off:
            raise MsifError(
                f"Truncation to {max_length} tokens leaves nothing to predict in any of the {self.read} rows that were "
                f"read of '{name}'; raise --max-length as far as the model has positions."
            )
        raise MsifError(
            f"Nothing can be predicted in any of the {self.read} rows that were read of '{name}': each is empty, a "
            "single token, or without an assistant's turn; check its fields."
        )

    def lines(self, name: str, max_length: int | None) -> Iterator[str]:
        """What is to be said of the pass, a sentence for each kind."""
        if self.blank:
            yield (
                f"{_rows(self.blank)} of '{name}' {_are(self.blank)} skipped, having nothing to predict (empty, a "
                f"single token, or no assistant's turn); the first is row {self.first_blank}"
            )
        if self.cut_off:
            yield (
                f"{_rows(self.cut_off)} of '{name}' {_are(self.cut_off)} skipped, since --max-length {max_length} cuts "
                f"off all that would be predicted; the first is row {self.first_cut_off}"
            )
        if self.cut:
            documents = "1 document" if self.cut == 1 else f"{self.cut} documents"
            yield f"{documents} of '{name}' {_are(self.cut)} cut at --max-length {max_length}"


@dataclass
class Strict(Tally):
    """For rows that must all be used: the first that cannot be is an error.

    Attributes:
        shortened: row -> tokens kept, and how many there were: those that are supervised, of a classifier all.
    """

    shortened: dict[int, tuple[int, int]] = field(default_factory=dict)

    def shorten(self, index: int, kept: int, total: int) -> None:
        super().shorten(index, kept, total)
        if kept < total:
            self.shortened[index] = (kept, total)

    def skip(self, index: int, reason: str, cut_off: bool = False) -> None:
        raise UnusableError(reason)


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"
