"""What the influence command prints of a run that it does not make."""

from __future__ import annotations

from msif.attribution.estimate import Asked, describe_scoring
from msif.candidates.selection import parse_candidates
from msif.cli.job import Job
from msif.cli.stage import ihvp_of
from msif.data.corpus import Corpus
from msif.data.sample import foretell

SOME = 64  # queries whose tokens are counted
CHECKED_ROWS = 1_000_000


def worth_checking(corpus: Corpus, dry_run: bool) -> bool:
    """Whether every row is looked at before the work: in a dry run only where that takes seconds."""
    return not dry_run or corpus.size is None or corpus.size <= CHECKED_ROWS


def describe(job: Job) -> str:
    """Sizes, memory and time of a run, from a sample of its documents and one small batch of them."""
    args, queries, rows = job.args, len(job.queries), len(job.corpus)
    spec = parse_candidates(args.candidates)
    candidates = rows if spec.all else min(rows, queries * sum(count for _, count in spec.parts))
    plan = foretell(job.documents(range(rows)))
    steps = (args.max_new_tokens if args.task == "lm" else 1) * sum(not query.answered for query in job.queries)
    tokenizer = job.query_model.tokenizer
    tokens = [len(tokenizer(query.text, verbose=False)["input_ids"]) for query in job.queries[:SOME]]
    asked = Asked(
        queries=queries,
        tokens=sum(tokens) / len(tokens) + steps / queries,
        steps=steps,
        shown=queries * min(2 * args.top_k, candidates),
        candidates=plan.part(plan.documents * candidates / rows),
        index=None if job.index is None else foretell(job.index),
        stages=[foretell(batches) for batches in job.solved],
        ihvp=ihvp_of(args),
    )
    return describe_scoring(job.scorer, asked, [args.pretrained_factors, args.finetuned_factors])
