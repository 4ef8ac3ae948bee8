"""What the demo prints and keeps: each question with its proponents, then a table of the methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import table as terminal
from rich.console import Console
from rich.text import Text

from experiments.demo.ranks import at_random, first_source, mean, read_rankings, read_rows, summarise
from msif.reporting.tables import Table, write_results

MAIN = "multi-stage"  # the method whose proponents are printed


@dataclass(frozen=True)
class Question:
    """A question of the half that was not fine-tuned on, the model's answer, and the passages that state the fact."""

    id: str
    prompt: str
    answer: str
    truth: str
    sources: frozenset[str]

    @property
    def right(self) -> bool:
        return self.answer == self.truth


def report(console: Console, world: Path, asked: Path, results: Path, methods: Mapping[str, str]) -> None:
    """Print the results.

    Args:
        world: the folder of the world.
        asked: the file of questions.
        results: holds a folder of results for each method.
        methods: the name of each method's folder -> its title.
    """
    shown = read_rows(results / MAIN / "top.jsonl")
    questions = answered(world, asked, shown)
    rankings = {name: read_rankings(results / name / "scores.parquet") for name in methods}
    console.rule("questions about the half of the facts that fine-tuning never contained", style="dim")
    console.print(f"Proponents by {methods[MAIN]}; [green]●[/] marks a passage that states the fact asked for.")
    for number, question in enumerate(questions, 1):
        own = [row for row in shown if row["query_id"] == question.id and row["kind"] == "proponent"]
        ranks = {methods[name]: first_source(rankings[name][question.id], question.sources) for name in methods}
        print_question(console, number, question, own, ranks)
    console.print()
    console.rule(style="dim")
    right = [question for question in questions if question.right]
    if not right:
        console.print("The model answered no question right, so there are no true sources to look for.")
        return
    by_title = {methods[name]: rankings[name] for name in methods}
    table = comparison(world, right, len(questions), by_title)
    print_comparison(console, table, world, right, by_title[methods[MAIN]])
    write_results(results.parent, "demo", table, {"questions": len(questions), "methods": dict(methods)})


def answered(world: Path, asked: Path, shown: Sequence[dict]) -> list[Question]:
    """The questions, with the answers of the model that the results report."""
    answers = {row["query_id"]: row["completion"].strip() for row in shown}
    facts = {fact["id"]: fact for fact in read_rows(world / "facts.jsonl")}
    fact_of = {query["id"]: facts[query["fact"]] for query in read_rows(world / "queries.jsonl")}
    return [
        Question(id, query["prompt"], answers.get(id, ""), fact_of[id]["answer"], frozenset(fact_of[id]["sources"]))
        for query in read_rows(asked)
        for id in [query["id"]]
    ]


def print_question(
    console: Console, number: int, question: Question, proponents: Sequence[dict], ranks: Mapping[str, int | None]
) -> None:
    """The answer, its strongest proponents, and where each method has the first true source."""
    verdict = ("right", "green") if question.right else (f"wrong, it is {question.truth}", "red")
    text = question.prompt.removeprefix("Question: ").removesuffix("\nAnswer:")
    console.print()
    console.print(Text.assemble((f"{number:2}  ", "dim"), (text, "bold"), f"  {question.answer}  ", verdict))
    for row in proponents:
        true = row["candidate_id"] in question.sources
        mark, words = (("●", "green"), (row["text"], "green")) if true else (("·", "dim"), (row["text"], ""))
        line = Text.assemble("    ", mark, f" {row['rank']:2}  {row['score']:9.3g}  {row['candidate_id']}  ", words)
        console.print(line, no_wrap=True, overflow="ellipsis")
    if question.right:
        places = " · ".join(f"{title} {rank or '–'}" for title, rank in ranks.items())
        console.print(Text(f"    first true source: {places}", style="dim"))


def comparison(
    world: Path, right: Sequence[Question], asked: int, rankings: Mapping[str, dict[str, list[str]]]
) -> Table:
    """How often a true source ranks first and within ten, by method, over the questions answered right."""
    some = next(iter(rankings.values()))  # each method has scored the same candidates
    corpus = read_rows(world / "corpus.jsonl")
    columns = {**rankings, "sentence embeddings alone": by_embedding(corpus, right, len(some[right[0].id]))}
    rows = {
        title: summarise([first_source(ranking[question.id], question.sources) for question in right])
        for title, ranking in columns.items()
    }
    rows["random order"] = mean([at_random(*found(question, some)) for question in right])
    return Table(
        ("a true source ranks", "first", "within ten", "MRR"),
        [(title, summary.first, summary.within_ten, summary.mrr) for title, summary in rows.items()],
        f"{len(right)} of {asked} questions, those that the model answers right",
        {"first": ".0%", "within ten": ".0%", "MRR": ".2f"},
    )


def found(question: Question, ranking: Mapping[str, list[str]]) -> tuple[int, int]:
    """Candidates of a question, and true sources among them."""
    return len(ranking[question.id]), len(question.sources.intersection(ranking[question.id]))


def print_comparison(
    console: Console, table: Table, world: Path, right: Sequence[Question], ranking: Mapping[str, list[str]]
) -> None:
    """The table, and how to read it."""
    shown = terminal.Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), title_justify="left", title_style="bold")
    shown.title = table.title
    for number, name in enumerate(table.columns):
        shown.add_column(name, justify="right" if number else "left")
    for row in table.rows:
        shown.add_row(row[0], *(format(v, table.formats[c]) for c, v in zip(table.columns[1:], row[1:], strict=True)))
    console.print()
    console.print(shown)
    corpus, counts = read_rows(world / "corpus.jsonl"), [found(question, ranking) for question in right]
    stated, kept = sum(len(question.sources) for question in right), sum(count for _, count in counts)
    console.print(
        f"\nMRR is the mean of 1 / rank of the first true source. Each fact is stated by {stated // len(right)} of "
        f"{len(corpus)} passages; preselection left {counts[0][0]} candidates a question, with {kept} of the {stated} "
        f"true sources among them. One small world, one seed, {len(right)} questions: one question is "
        f"{1 / len(right):.0%}, so small differences mean nothing. Sentence embeddings find the sources in this world "
        "because a passage that states a fact repeats the words of its question; they look at texts alone and say "
        "nothing about the model. A passage about the same names can influence an answer without stating the fact, so "
        "a proponent that is not marked is not by itself a mistake."
    )


def by_embedding(corpus: Sequence[dict], questions: Sequence[Question], candidates: int) -> dict[str, list[str]]:
    """The candidates in the order of the preselection alone, as `msif.influence` asks for them."""
    from transformers.utils import logging

    from msif.candidates.embedding import EmbeddingSelector
    from msif.data.format import join_texts

    logging.disable_progress_bar()
    texts = [join_texts(question.prompt, question.answer) for question in questions]
    found = EmbeddingSelector(candidates, progress=False).select(texts, [row["text"] for row in corpus])
    ids = [row["id"] for row in corpus]
    return {question.id: [ids[row] for row in rows] for question, rows in zip(questions, found, strict=True)}
