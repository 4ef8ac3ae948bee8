"""What the influence command prints of a run that it does not make."""

from __future__ import annotations

from msif.attribution.estimate import ScoringPlan, describe_scoring
from msif.candidates.selection import parse_candidates
from msif.curvature.estimate import Machines
from msif.data.sample import foretell
from msif.job import Job

SOME = 64  # queries whose tokens are counted


def describe(job: Job, machines: Machines) -> str:
    """Sizes, memory and time of a run, from a sample of its documents and one small batch of them."""
    options, queries, rows = job.options, len(job.queries), len(job.corpus)
    spec = parse_candidates(options.candidates)
    candidates = rows if spec.all else min(rows, queries * sum(count for _, count in spec.parts))
    documents = foretell(job.documents(range(rows)))
    steps = (options.max_new_tokens if job.last.task == "lm" else 1) * sum(not query.answered for query in job.queries)
    tokenizer = job.asked.loaded.tokenizer
    tokens = [len(tokenizer(query.text, verbose=False)["input_ids"]) for query in job.queries[:SOME]]
    plan = ScoringPlan(
        queries=queries,
        tokens=sum(tokens) / len(tokens) + steps / queries,
        steps=steps,
        shown=queries * min(2 * options.top_k, candidates),
        candidates=documents.part(documents.documents * candidates / rows),
        index=None if job.index is None else foretell(job.index),
        stages=[foretell(batches) for batches in job.solved],
        once=[foretell(batches) for batches in job.gone_over],
        ihvp=options.ihvp,
        room=job.room,
        machines=machines,
    )
    return describe_scoring(job.scorer, plan, [part.factors for part in job.parts])
