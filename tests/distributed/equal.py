"""Run by every process: fits, scores and objects of all of them together against those of one."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from helpers import alone, documents, tiny_lm

from msif import distributed
from msif.attribution.gradients import Side
from msif.attribution.partial import PartialScores
from msif.attribution.scorers import InfluenceScorer
from msif.curvature.fit import FitSettings, fit
from msif.curvature.preconditioners import EKFAC
from msif.models.objectives import CausalLM
from msif.models.select import track_modules

folder = Path(sys.argv[1])
SMALL = 8 * sum(p.numel() for p in tiny_lm().parameters()) + 22_000  # one layer at a time, beside the weights
LENGTHS = {"uneven": [4, 6, 5, 7, 3], "one batch": [6]}


class Counted(list):
    passes = 0

    def __iter__(self):
        Counted.passes += 1
        return super().__iter__()


def fitted(name, lengths, path, **options):
    model = tiny_lm()
    return fit(
        model,
        track_modules(model),
        CausalLM(),
        Counted(alone(documents(lengths))),
        path,
        FitSettings(seed=3),
        **options,
    )


def scored(store, partial=None):
    model = tiny_lm()
    side = Side(model, track_modules(model), CausalLM())
    scorer = InfluenceScorer(side, side, [EKFAC(store)])
    candidates = alone(documents([3, 8, 4, 6, 5, 2, 7], seed=5))
    vectors = distributed.same(lambda: scorer.query_vectors(alone(documents([5, 4], seed=1))))
    return scorer.score_vectors(vectors, candidates, partial)


def matrices(store):
    """Of each module A, G and Λ without the choice of eigenvectors."""
    for name, factors in store.items():
        for Q, S in ((factors.Q_A, factors.S_A), (factors.Q_G, factors.S_G)):
            yield name, S if Q is None else Q @ (S[..., None] * Q.transpose(-1, -2))


alone_first = {
    name: fitted(name, lengths, folder / f"{name}, process {os.environ['RANK']} alone")
    for name, lengths in LENGTHS.items()
}
scores = scored(alone_first["uneven"])
distributed.start()
rank, count = distributed.rank(), distributed.processes()
assert count == 2 and distributed.leads() == (rank == 0)

for name, lengths in LENGTHS.items():
    passes = []
    for budget in (None, SMALL):
        Counted.passes = 0
        store = fitted(name, lengths, folder / f"{name}, {budget} bytes", memory=budget)
        for (module, here), (_, there) in zip(matrices(store), matrices(alone_first[name]), strict=True):
            torch.testing.assert_close(here, there, rtol=0, atol=1e-6 * float(there.abs().max()), msg=module)
        mine, other = ({**one.manifest} for one in (store, alone_first[name]))
        assert mine.pop("provenance") == {"processes": 2} and other.pop("provenance") == {"processes": 1}
        close = {key: abs(value - other["convergence"][key]) for key, value in mine.pop("convergence").items()}
        assert close.keys() == other.pop("convergence").keys() and all(value < 1e-6 for value in close.values())
        assert mine == other
        passes.append(Counted.passes)
    assert passes[1] > passes[0], passes  # groups of layers
    made = distributed.gathered(len(list(store.path.glob("*.safetensors"))))
    assert made == [made[0]] * 2 and not list(store.path.glob("*checkpoint*"))

found = scored(alone_first["uneven"])
np.testing.assert_allclose(found.values, scores.values, rtol=1e-9)
assert np.array_equal(found.candidates, scores.candidates)

# what several had scored is one pass's, however many go on
kept = folder / "partial.safetensors"
scored(alone_first["uneven"], PartialScores(kept, lambda: {"run": 1}))
distributed.wait()
assert sorted(path.name for path in folder.glob("partial*")) == [
    "partial.0-of-2.safetensors",
    "partial.1-of-2.safetensors",
]
again = PartialScores(kept, lambda: {"run": 1})
assert again.complete and np.array_equal(again.whole()[0], scores.candidates)
assert not PartialScores(kept, lambda: {"run": 2}).complete
distributed.wait()
if rank == 1:
    (folder / "partial.1-of-2.safetensors").unlink()
distributed.wait()
half = PartialScores(kept, lambda: {"run": 1})
assert not half.complete and half.whole()[0].tolist() == scores.candidates[scores.candidates % 2 == 0].tolist()
np.testing.assert_allclose(scored(alone_first["uneven"], half).values, scores.values, rtol=1e-9)

value = distributed.same(lambda: {"a": [torch.arange(3) + rank, "text"], "b": torch.full((2, 2), float(rank)).double()})
assert torch.equal(value["a"][0], torch.arange(3)) and value["a"][1] == "text" and value["b"].dtype == torch.float64
assert distributed.total([1.0, float(rank)]) == [2.0, 1.0]
distributed.go_in_step()
steps = list(distributed.own_batches("abc"))
assert steps == ([(0, "a", True), (2, "c", True)] if rank == 0 else [(1, "b", True), (-1, "a", False)])
steps = list(distributed.own_batches("abc", wanted=lambda batch: batch == "b"))
assert steps == ([(-1, "a", False)] if rank == 0 else [(1, "b", True)])
assert distributed.computed(lambda: rank) == rank
distributed.stop()
print(json.dumps("ended"))
