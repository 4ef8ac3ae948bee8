"""Which methods are compared with halves that are foretold, and what the table says of them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from experiments.common.judging import Judge, random_halves
from experiments.nearby import __main__ as command
from experiments.nearby.methods import methods_of_one, methods_of_two, one_stage, two_stages
from experiments.nearby.report import near_table
from experiments.retraining import methods as retraining_methods
from msif.errors import MsifError


@pytest.mark.parametrize(("listed", "method"), [(one_stage, "single-stage"), (two_stages, "multi-stage")])
def test_each_family_is_asked_without_halves_first_and_all_else_is_alike(monkeypatch, listed, method) -> None:
    built = []

    def record(name, first, last, damping, ihvp, **options):
        built.append((name, damping, options))

    monkeypatch.setattr(retraining_methods, "build_scorer", record)
    stage = SimpleNamespace(stage=None)
    families: dict[str, tuple] = {}
    for near in listed():
        near.method.build(SimpleNamespace(pretrained=stage, finetuned=stage))
        name, damping, options = built.pop()
        assert name == method and options.pop("halves", None) == near.halves
        if near.family not in families:
            assert near.halves is None
            families[near.family] = (damping, options, near.method.prior)
        assert families[near.family] == (damping, options, near.method.prior)
    assert len(families) >= 3
    methods = {one_stage: methods_of_one, two_stages: methods_of_two}[listed](True)
    assert len({one.key for one in methods}) == len(methods) == len(listed())


def test_the_table_sets_each_against_its_family_without_halves() -> None:
    draw = np.random.default_rng(0)
    masks, truth = random_halves(draw, 40, 30), draw.normal(size=(2, 3, 30))
    judge = Judge(masks, -np.einsum("mn,sqn->msq", masks, truth))
    nears = one_stage()
    scores = {near.method.name: truth if near.halves else truth + draw.normal(size=truth.shape) for near in nears}
    table = near_table([("statements", judge, nears, scores)])
    assert len(table.rows) == len(nears)
    for near, row in zip(nears, table.rows, strict=True):
        assert row[:2] == ["statements", near.family]
        if near.halves is None:
            assert row[2:4] == [None, None] and row[5] is None and float(row[4].split()[0]) < 0.95
        else:
            assert row[2:4] == [near.halves.count, f"{near.halves.step:g}"]
            assert row[4].startswith("1.000") and row[5].startswith("+0.") and row[7] == pytest.approx(1)
        assert row[6] < 1  # without opponents


def test_the_command_line_names_what_is_wrong(tmp_path) -> None:
    for flags, named in ((["--data", str(tmp_path)], "--data"), (["--halves", "1"], "--halves")):
        with pytest.raises(MsifError, match=named):
            command.main(["--output", str(tmp_path / "out"), *flags])
