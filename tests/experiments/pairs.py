"""A tiny pair as `experiments.fact_tracing.pair` leaves it, trained for a few steps."""

import json

from experiments.common import training

TOWNS = {"Ada": "Linz", "Bela": "Graz", "Cleo": "Brno", "Dora": "Gent"}
STATED = ("{s} was born in {a}.", "The birthplace of {s} is {a}.", "{a} is where {s} was born.")


def prompt_of(subject):
    return f"Question: Where was {subject} born?\nAnswer:"


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def save_pair(folder):
    """Folder with data/, pretrained/, finetuned/ and accuracy.json; Cleo's and Dora's towns are only asked."""
    data = folder / "data"
    data.mkdir(parents=True)
    texts = [form.format(s=s, a=a) for s, a in TOWNS.items() for form in STATED]
    write_rows(data / "corpus.jsonl", [{"id": f"s{n}", "text": text, "facts": []} for n, text in enumerate(texts)])
    pairs = [{"id": s, "prompt": prompt_of(s), "completion": f" {a}"} for s, a in TOWNS.items()]
    write_rows(data / "finetune.jsonl", pairs[:2])
    write_rows(data / "queries.jsonl", pairs[2:])
    facts = [
        {
            "id": s,
            "relation": "born",
            "subject": s,
            "answers": [a],
            "half": "query",
            "sources": [3 * n, 3 * n + 1, 3 * n + 2],
        }
        for n, (s, a) in enumerate(TOWNS.items())
    ]
    write_rows(data / "facts.jsonl", facts)
    (folder / "accuracy.json").write_text(json.dumps({"answered": {"Ada": True, "Cleo": False, "Dora": True}}))
    tokenizer = training.build_tokenizer(texts + [prompt_of(s) for s in TOWNS], 400)
    model = training.new_model(tokenizer, training.ModelSize(2, 16, 2, positions=64), 0)
    examples = training.plain_text(tokenizer, texts)
    schedule = training.Schedule(epochs=20, learning_rate=1e-2, batch_size=4)
    training.train(model, examples, schedule, 0, "pre-training").save(folder / "pretrained", tokenizer)
    tuned = [training.completion(tokenizer, pair["prompt"], pair["completion"], end=False) for pair in pairs]
    schedule = training.Schedule(epochs=20, learning_rate=3e-3, batch_size=4)
    training.train(model, tuned, schedule, 0, "fine-tuning").save(folder / "finetuned", tokenizer)
    return folder
