"""The original T-REx: Wikipedia abstracts with sentence boundaries and aligned triples (Elsahar et al. 2018).

A file is a JSON list of documents; a document has "text", "sentences_boundaries" (pairs of character positions, the
end excluded) and "triples", each with "sentence_id", "subject", "predicate" and "object". An entity has a "uri", a
"surfaceform" and "boundaries" in the document's text. Labels are not given: a name is the spelling seen most often.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.facts.collect import Collector
from experiments.facts.facts import FactData
from msif.errors import MsifError


@dataclass(frozen=True)
class _Triple:
    relation: str
    subject: str  # the last parts of the uris
    object: str
    text: str
    subject_surface: str
    surface: str  # of the object


def load_trex(folder: str | Path) -> FactData:
    """The facts of all ``*.json`` of a folder, and the unique sentences that state them.

    A triple without sentence is counted and left out; one whose object stands outside its sentence (the aligner takes
    the document's title for a pronoun, for instance) is counted with the evidence that lacks its object.

    Raises:
        MsifError: there is no such file, or it is not T-REx.
    """
    paths = sorted(Path(folder).glob("*.json"))
    if not paths:
        raise MsifError(f"there is no *.json in {folder}: give the folder of the T-REx files with --data.")
    triples: list[_Triple] = []
    counts = Counter({"triples without a sentence, left out": 0})
    for path in paths:
        for document in _documents(path):
            try:
                triples.extend(_triples(document, counts))
            except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
                name = document.get("docid") if isinstance(document, dict) else document
                raise MsifError(f"{path}: document {name!r} is not as T-REx writes it ({error!r}).") from error
    return _collected(triples, counts)


def _collected(triples: list[_Triple], counts: Counter[str]) -> FactData:
    spellings: dict[str, Counter[str]] = {}
    for triple in triples:
        spellings.setdefault(triple.subject, Counter())[triple.subject_surface] += 1
        spellings.setdefault(triple.object, Counter())[triple.surface] += 1
    names = {uri: seen.most_common(1)[0][0] for uri, seen in spellings.items()}
    collector = Collector()
    for triple in triples:
        fact = collector.fact(triple.relation, triple.subject, names[triple.subject], names[triple.object])
        collector.evidence(fact, triple.text, triple.surface)
    return collector.data(**counts)


def _documents(path: Path) -> list[Any]:
    try:
        documents = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MsifError(f"{path} cannot be read as JSON ({error}): get the file again.") from error
    if not isinstance(documents, list):
        raise MsifError(f"{path} is not a list of documents: give the folder of the original T-REx JSON.")
    return documents


def _triples(document: dict, counts: Counter[str]) -> Iterator[_Triple]:
    bounds = document["sentences_boundaries"]
    for triple in document["triples"]:
        number = triple["sentence_id"]
        if number is None or not 0 <= number < len(bounds):
            counts["triples without a sentence, left out"] += 1
            continue
        start, end = bounds[number]
        subject, target = triple["subject"], triple["object"]
        yield _Triple(
            _last(triple["predicate"]["uri"]),
            _last(subject["uri"]),
            _last(target["uri"]),
            document["text"][start:end],
            subject["surfaceform"],
            target["surfaceform"],
        )


def _last(uri: str) -> str:
    """`http://www.wikidata.org/entity/Q64` -> `Q64`; a literal, such as a date, stays whole."""
    return uri.rsplit("/", 1)[-1] if uri.startswith("http") else uri
