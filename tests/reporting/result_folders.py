"""Folders as msif.influence writes them, with what a page has to show and to survive."""

import json

import pyarrow as pa
import pyarrow.parquet as pq

EVIL = "<script>window.evil = 1</script><img src=x onerror='window.evil = 1'> & \"quoted\""


def shown(query, kind, rank, score, **changes):
    row = {"query_id": query, "kind": kind, "rank": rank, "candidate_id": f"p{rank}", "score": score}
    row |= {"prompt": f"Who? {EVIL}", "completion": f" Ada {EVIL}", "label": None, "text": EVIL}
    row |= {"tokens": [["<script>window", 1.5 * score], [".evil", -0.5 * score]]}
    row |= {"blocks": {f"layers.0.{EVIL}": score}, "fields": {"source": EVIL}, "norm": 2.0}
    return {**row, **changes}


def scored(query, scores, prefix="p"):
    """Rows of scores.parquet: the candidates are called p1, p2, ... by their ranks."""
    return [
        {"query_id": query, "candidate_id": f"{prefix}{rank}", "row": rank, "score": score, "rank": rank}
        for rank, score in enumerate(scores, 1)
    ]


def write_results(folder, rows, scores, told=(), **config):
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in (("top.jsonl", rows), ("queries.jsonl", told)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in lines))
    config = {"method": "multi-stage", "pretrained": "m0", "finetuned": EVIL, "corpus": "c.jsonl", **config}
    manifest = {"config": config, "versions": {"torch": "2"}, "weights": ["abc"], "left_out": {"score": "no <b>"}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    pq.write_table(pa.Table.from_pylist(scores), folder / "scores.parquet")
    return folder


def small(folder):
    """Two queries with documents and one with none."""
    rows = [
        shown("a", "proponent", 1, 4.0),
        shown("a", "opponent", 3, -1.0, candidate_id=EVIL),
        shown("b", "proponent", 1, 2.0, label="odd", completion=None, tokens=[], blocks={}),
    ]
    scores = [*scored("a", [4.0, 0.5, -1.0]), *scored("b", [2.0, 0.0]), *scored("c", [0.0])]
    scores[2]["candidate_id"] = EVIL
    return write_results(folder, rows, scores, alpha=None)


PLACES = ["Linz", "Graz", "Brno", "Wien", "Gent", "Bern"]


def tokens_of(text, strongest):
    """One word stands out; the others have next to nothing."""
    words = text.split(" ")
    return [[(" " if place else "") + word, 5.0 if word == strongest else 0.01] for place, word in enumerate(words)]


def large(folder, *, shift=0, queries=6, method="multi-stage"):
    """Six queries of twelve documents; one document is first for all, two say the same, one is long."""
    rows, scores, told = [], [], []
    filler = " ".join(f"w{n}" for n in range(300))
    for number, town in enumerate(PLACES[:queries]):
        query, order = f"q{number}", list(range(12))
        order = order[:1] + order[1 + shift :] + order[1 : 1 + shift]
        names = [f"d{place}" if place == 0 else f"{town}-{place}" for place in order]
        values = [6.0 - place if place < 9 else 5.5 - place for place in range(12)]
        scores += [
            {"query_id": query, "candidate_id": name, "row": place, "score": value, "rank": place + 1}
            for place, (name, value) in enumerate(zip(names, values, strict=True))
        ]
        texts = {name: f"{name} says that Ada lives in {town} and sells {name} clocks today" for name in names}
        texts[f"{town}-2"] = texts[f"{town}-1"]
        texts[f"{town}-3"] = f"{filler} {town} {filler}"
        texts[names[-1]] = f"{EVIL} {town}"
        for place in [*range(6), 11]:
            text, score = texts[names[place]], values[place]
            parts = tokens_of(text, town)
            split = [[part / 2 for _, part in parts], [part / 2 if place else -9.0 for _, part in parts]]
            row = {"query_id": query, "kind": "proponent" if score > 0 else "opponent", "rank": place + 1}
            row |= {"candidate_id": names[place], "score": score, "text": text, "prompt": f"Where is Ada {number}?"}
            row |= {"completion": f" {town} now", "label": None, "tokens": parts, "by_answer": split, "norm": 3.0}
            row |= {"blocks": {"layers.0.attention.qkv:q0": score, "layers.1.mlp.up": -score / 2}}
            row |= {"fields": {"source": f"book {place}"}, "self_influence": 64.0 if names[place] == "d0" else 2.0}
            row |= {"lexical": {"score": 3.0, "rank": place + 1, "words": [["ada", 2.0], [town.lower(), 1.0]]}}
            rows.append(row)
        told.append(
            {
                "id": query,
                "prompt": f"Where is Ada {number}?",
                "completion": f" {town} now",
                "label": None,
                "fields": {"relation": "born" if number % 2 else "lives", "fact": f"f{number}"},
                "tokens": [[f" {town}", -0.1], [" now", -2.0]],
                "occurrences": number,
                "documents": 99,
            }
        )
    return write_results(folder, rows, scores, told, method=method)


TRUTH = [
    {"id": "f0", "sources": ["Linz-1", "Linz-4", "elsewhere"], "answer": "Linz"},
    {"id": "f1", "sources": ["Graz-3"], "answer": "Rom"},
]


def write_truth(path):
    path.write_text("".join(json.dumps(row) + "\n" for row in TRUTH))
    return path
