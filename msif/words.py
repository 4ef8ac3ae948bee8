"""What words say in a run, from one pass over its corpus: for candidates, for the prior, and for the report."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from msif.data.corpus import Corpus
from msif.data.format import Format
from msif.data.queries import Query
from msif.errors import MsifError
from msif.reporting.lexical import Overlap

log = logging.getLogger(__name__)


class Words:
    """BM25+ of all documents of a corpus for a run's queries, made when first asked for."""

    def __init__(self, corpus: Corpus, format: Format, queries: Sequence[Query], progress: bool = True) -> None:
        self.corpus, self.format, self.queries, self.progress = corpus, format, queries, progress

    @cached_property
    def overlap(self) -> Overlap:
        """
        Raises:
            MsifError: a row that cannot be read.
        """
        rows = self.corpus.rows(columns=self.format.columns)
        texts = (self.format.text_of(values, f"row {row}") for row, values in rows)
        said, answers = [query.text for query in self.queries], [query.completion or "" for query in self.queries]
        return Overlap(said, answers, texts, progress=self.progress)

    def scores(self, query: int) -> np.ndarray:
        """BM25+ of every row, (N,)."""
        return self.overlap.bm25.scores(query)

    def to_show(self) -> Overlap | None:
        """For the report, which does without where a pass of its own over the corpus would be one over a stream."""
        if self.corpus.streaming and "overlap" not in self.__dict__:
            return None
        try:
            return self.overlap
        except MsifError as error:  # of a row that is no candidate; scores do not wait for it
            log.warning("words in common with the queries are not shown: %s", error)
            return None
