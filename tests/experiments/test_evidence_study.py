"""Which methods are compared with τ of the evidence, and that nothing else differs."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from experiments.common.judging import Judge, random_halves
from experiments.evidence import __main__ as command
from experiments.evidence import methods
from experiments.evidence.methods import (
    EVIDENCE,
    NOTHING,
    STATE,
    one_stage,
    two_stages,
)
from experiments.evidence.scales import scale_table
from experiments.peers import both
from experiments.retraining.families import family_table
from msif.attribution.damping import Damping
from msif.errors import MsifError


@pytest.mark.parametrize("listed", [one_stage, two_stages])
def test_methods_of_a_family_differ_in_what_tells_tau(monkeypatch, listed) -> None:
    built = []
    monkeypatch.setattr(methods, "build_scorer", lambda *args, **options: built.append((*args, options)))
    monkeypatch.setattr(methods, "by_evidence", lambda stage, before=None: ("evidence", stage, before))
    member = SimpleNamespace(pretrained=SimpleNamespace(stage="first"), finetuned=SimpleNamespace(stage="last"))
    families: dict[str, tuple] = {}
    for told in listed():
        told.method.build(member)
        name, first, last, damping, options = built.pop()
        assert name == ("single-stage" if listed is one_stage else "source" if damping is None else "multi-stage")
        last_of = {STATE: "last", NOTHING: "last", EVIDENCE: ("evidence", "last", "first")}
        assert first == (("evidence", "first", None) if told.by == EVIDENCE else "first")
        assert last == (None if listed is one_stage else last_of[told.by])
        if told.by == NOTHING:
            assert damping == Damping(alpha=0.0)
            continue
        if told.family not in families:
            assert told.by == STATE
            families[told.family] = (damping, options)
        assert families[told.family] == (damping, options)
    named = both._listed(listed, True)
    assert len({one.key for one in named}) == len(named) == len(listed())


def test_the_table_says_what_told_tau() -> None:
    draw = np.random.default_rng(0)
    masks, truth = random_halves(draw, 40, 30), draw.normal(size=(2, 3, 30))
    judge = Judge(masks, -np.einsum("mn,sqn->msq", masks, truth))
    told = two_stages()
    scores = {one.method.name: truth + (one.by == NOTHING) * draw.normal(size=truth.shape) for one in told}
    table = family_table([("questions", judge, told, scores)], ("τ told by",), "gain", "of these")
    for one, row in zip(told, table.rows, strict=True):
        assert row[:3] == ["questions", one.family, one.by]
        assert (row[4] is None) == (one.by == STATE)
        assert row[3].startswith("1.000") == (one.by != NOTHING)


def test_scales_are_means_over_models_and_blocks(monkeypatch) -> None:
    import torch

    def stage(*taus):
        return SimpleNamespace(tau={"m": torch.tensor(taus)})

    monkeypatch.setattr(
        "experiments.evidence.scales.by_evidence", lambda own, before=None: stage(0.5 if before else 2.0)
    )
    pairs = [
        SimpleNamespace(pretrained=SimpleNamespace(stage=stage(1.0, 2.0)), finetuned=SimpleNamespace(stage=stage(t)))
        for t in (4.0, 2.0)
    ]
    rows = scale_table(pairs).rows
    assert rows == [["pre-training", "m", 0.75, 0.5], ["fine-tuning", "m", 0.375, 2.0]]


def test_wrong_numbers_are_told_before_any_work(tmp_path) -> None:
    with pytest.raises(MsifError):
        command.main(["--output", str(tmp_path), "--data", str(tmp_path), "--halves", "0"])
