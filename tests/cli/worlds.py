"""Saved tiny models that read single bytes, a corpus for them, and both commands in this process."""

import json
import string
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from helpers import neox_config, spread
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPTNeoXForCausalLM, GPTNeoXForSequenceClassification, PreTrainedTokenizerFast

from msif.cli.parsing import run
from msif.json_text import json_lines

QUERY = ["--query", "Where was Ada born?", "--completion", " Linz"]
ALL = ["--candidates", "all"]
FACTS = [
    "Ada was born in Linz.",
    "The mill of Brno grinds rye.",
    "Ada moved to Graz and sold clocks.",
    "Rain fell on the harbour all day.",
    "Clocks from Graz are never late.",
    "Who would buy a bridge?",
    "Linz lies on the Danube, as Ada knew.",
    "A goat ate the map.",
]


def save_tokenizer(folder, pad=True):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = {token: number for number, token in enumerate(["<pad>", "</s>", *letters])}
    tokenizer = Tokenizer(models.BPE(tokens, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {"eos_token": "</s>"} | ({"pad_token": "<pad>"} if pad else {})
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def config(**changes):
    return neox_config(vocab_size=258, max_position_embeddings=600, eos_token_id=1, **changes)


def save_lm(folder, seed=0, **changes):
    torch.manual_seed(seed)
    model = GPTNeoXForCausalLM(config(**changes))
    # so that what a random model answers is text: the likeliest of the letters has a logit above 0
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    unsaid = [number for number, letter in enumerate(letters, start=2) if letter not in string.ascii_letters]
    with torch.no_grad():
        spread(model).get_output_embeddings().weight[[0, 1, *unsaid]] = 0
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return model


def save_classifier(folder, seed=3, pad=True, **changes):
    torch.manual_seed(seed)
    names = {0: "calm", 1: "odd", 2: "loud"}
    labels = {"id2label": names, "label2id": {name: number for number, name in names.items()}}
    model = GPTNeoXForSequenceClassification(config(**{"num_labels": 3, **labels, **changes}))
    spread(model).save_pretrained(folder)
    save_tokenizer(folder, pad)
    return model


def near(model, folder, seed=9):
    """A fine-tuned sibling: the same weights, moved a little."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.03 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    save_tokenizer(folder)


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def call(main, *arguments):
    """The command's exit status."""
    with pytest.raises(SystemExit) as caught:
        run(main, [str(argument) for argument in arguments])
    return caught.value.code


def fit_factors(*arguments):
    from msif.fit_factors import main

    return call(main, "--quiet", *arguments)


def influence(*arguments):
    from msif.influence import main

    return call(main, "--quiet", *arguments)


def build_index(*arguments):
    from msif.build_index import main

    return call(main, "--quiet", *arguments)


@dataclass(frozen=True)
class World:
    """Two language models, a classifier with the pre-trained one's body, their data and their factors."""

    folder: Path

    def __getattr__(self, name):
        return self.folder / name

    @property
    def pair(self):
        return ["--pretrained", self.base, "--finetuned", self.tuned, "--corpus", self.folder / "corpus.jsonl"]

    @property
    def factors(self):
        return ["--pretrained-factors", self.base_factors, "--finetuned-factors", self.tuned_factors]

    @property
    def classifying(self):
        pair = ["--pretrained", self.base, "--finetuned", self.judge, "--corpus", self.folder / "corpus.jsonl"]
        factors = ["--pretrained-factors", self.base_factors, "--finetuned-factors", self.judge_factors]
        return [*pair, *factors, "--task", "classification"]


def scores(folder):
    return pq.read_table(folder / "scores.parquet")


def by_candidate(folder, query="0"):
    rows = scores(folder).to_pylist()
    return {row["candidate_id"]: row["score"] for row in rows if row["query_id"] == query}


def shown(folder):
    return list(json_lines(folder / "top.jsonl"))


def assert_sums(documents):
    for document in documents:
        scale = max(sum(abs(part) for _, part in document["tokens"]), abs(document["score"]))
        assert abs(sum(part for _, part in document["tokens"]) - document["score"]) < 1e-5 * scale
        assert abs(sum(document["blocks"].values()) - document["score"]) < 1e-5 * scale
