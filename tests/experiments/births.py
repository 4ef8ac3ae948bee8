"""Twelve people and where they were born: the files of a pair of fact tracing, and its two tiny models."""

import json

from pairs import write_rows

from experiments.common import training

CITIES = ["Oslo", "Rome", "Lima", "Cairo"]
NAMES = ["Ada", "Bo", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hal", "Ida", "Jon", "Kai", "Lea"]


def write_data(folder):
    """Twelve people and where they were born, stated twice each; ten sentences that state nothing."""
    city = {name: CITIES[i % 4] for i, name in enumerate(NAMES)}
    texts = [text for n in NAMES for text in (f"{n} was born in {city[n]}.", f"The birthplace of {n} is {city[n]}.")]
    texts += [f"In {CITIES[i % 4]} there are {i} bridges." for i in range(10)]
    facts = [
        {"id": f"b:{n}", "relation": "b", "answers": [city[n]], "sources": [2 * i, 2 * i + 1]}
        for i, n in enumerate(NAMES)
    ]
    rows = [
        {"id": f"b:{n}", "prompt": f"Question: Where was {n} born?\nAnswer:", "completion": f" {city[n]}"}
        for n in NAMES
    ]
    (folder / "data").mkdir(parents=True)
    write_rows(folder / "data" / "corpus.jsonl", [{"id": f"s{i}", "text": text} for i, text in enumerate(texts)])
    write_rows(folder / "data" / "facts.jsonl", facts)
    write_rows(folder / "data" / "finetune.jsonl", rows[:4])
    write_rows(folder / "data" / "queries.jsonl", rows[4:])
    (folder / "accuracy.json").write_text(
        json.dumps({"answered": {row["id"]: i % 2 == 0 for i, row in enumerate(rows)}})
    )
    return texts, rows


def save_births(folder):
    """The files and two tiny models, trained for one epoch each."""
    texts, rows = write_data(folder)
    tokenizer = training.build_tokenizer(texts + [row["prompt"] + row["completion"] for row in rows], 400)
    model = training.new_model(tokenizer, training.ModelSize(layers=2, hidden=16, heads=2, positions=64), 0)
    schedule = training.Schedule(1, 1e-2, 8)
    training.train(model, training.plain_text(tokenizer, texts), schedule, 0, "").save(folder / "pretrained", tokenizer)
    asked = [training.completion(tokenizer, row["prompt"], row["completion"]) for row in rows[:4]]
    training.train(model, asked, schedule, 0, "").save(folder / "finetuned", tokenizer)
    return folder
