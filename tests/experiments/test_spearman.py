"""The comparison of estimators on a model of a thousand parameters: methods, costs, reports, resumption, mistakes."""

import json
from dataclasses import replace

import numpy as np
import pytest
from micro import MICRO, lines, run

from experiments.common.cache import Cache
from experiments.spearman import __main__ as command
from experiments.spearman import bench as bench_module
from experiments.spearman import tasks, text
from experiments.spearman.bench import Bench
from experiments.spearman.configuration import NATURAL
from experiments.spearman.points import points_of
from experiments.spearman.truth import FULL, TRUTH
from experiments.spearman.world import make_world
from msif.errors import MsifError

EXACT = {"exact blocks", "exact modules", "exact layers"}
METHODS = {
    *("CG", "EK-FAC-CG", "LiSSA", "EK-FAC-LiSSA", "Arnoldi", "Arnoldi, with complement"),
    *("EK-FAC", "EK-FAC, MLP only", "K-FAC", "diagonal", "GDP", "cosine", "CKA", "CKA, whole gradients"),
    *EXACT,
    *("TRAK, 1 model", "TRAK, 2 models", "TRAK, 2 models, Q per example", "LoGra"),
}
ABLATIONS = {
    "EK-FAC-CG, 2 labels",
    "EK-FAC, no head split",
    "EK-FAC, fitted on 4 others",
    "EK-FAC, 2 labels a sequence",
}


def cache_of(done):
    configuration = json.loads((done / "report" / "spearman.json").read_text())["configuration"]
    return Cache(done / "points", {key: configuration[key] for key in ("seed", "model", "configuration")})


def kept(done):
    """All points of the run."""
    cache = cache_of(done)
    found = [points_of(cache.load(path.stem)) for path in sorted(cache.folder.glob("*.npz"))]
    assert found
    return [point for some in found for point in some]


def tables(folder):
    return {table["title"]: table["rows"] for table in json.loads((folder / "spearman.json").read_text())["tables"]}


# --- the run


def test_every_method_has_a_finite_score_of_every_pair_at_every_damping(done):
    found = kept(done)
    for damping in MICRO.dampings:
        own = {point.method for point in found if point.damping == damping}
        extra = {*ABLATIONS, FULL} if damping == MICRO.detailed else set()
        assert own == {*METHODS, TRUTH, *extra}
    for point in found:
        assert point.scores.shape == (MICRO.queries, MICRO.candidates)
        assert np.isfinite(point.scores).all() and point.query > 0 and point.overhead >= 0


def test_what_comes_before_the_first_query_is_counted(done):
    by_name = {point.method: point for point in kept(done) if point.damping == "1e-2"}
    fitted = {name for name, point in by_name.items() if point.overhead > 0}
    none = {"CG", "LiSSA", "GDP", "cosine", "CKA", "CKA, whole gradients", *EXACT, TRUTH, FULL}
    assert fitted == {*METHODS, *ABLATIONS} - none
    passes = {name: by_name[name].overhead_passes for name in fitted}
    assert passes["EK-FAC"] == passes["K-FAC"] == passes["EK-FAC-CG"] == 2  # covariance and Λ
    assert passes["EK-FAC, 2 labels a sequence"] == 4 and passes["EK-FAC, fitted on 4 others"] == 1
    assert passes["Arnoldi"] == MICRO.arnoldi[0]
    assert passes["TRAK, 1 model"] == passes["LoGra"] == 2  # 16 sequences of a kernel, 8 that H is over
    assert passes["TRAK, 2 models"] == 4
    # the checkpoints on halves were trained for it
    assert by_name["TRAK, 2 models"].overhead > by_name["TRAK, 1 model"].overhead


def test_tables_and_plots(done):
    found = tables(done / "report")
    overview = next(rows for title, rows in found.items() if title.startswith("Mean Spearman by damping"))
    assert {row["method"] for row in overview} == {*METHODS, *ABLATIONS}
    values = [row["1e-2"] for row in overview]
    assert values == sorted(values, reverse=True) and all(-1 <= value <= 1 for value in values)
    assert overview[0]["a query, CPU seconds"] > 0
    (rows,) = [rows for title, rows in found.items() if title.startswith("Damping 1e-2")]
    assert "all parameters" in rows[0] and {row["method"] for row in rows} == {*METHODS, *ABLATIONS}
    (rows,) = [rows for title, rows in found.items() if title.startswith("Damping natural")]
    assert "all parameters" not in rows[0]
    solved = {(row["solved"], row["damping"]): row for row in found["The truth"]}
    assert solved[TRUTH, "1e-2"]["mean λ"] == 0.01 and solved[TRUTH, "1e-2"]["Spearman"] == pytest.approx(1)
    assert solved[FULL, "1e-2"]["Spearman"] < 1
    assert all(row["largest residual"] < 1e-9 for (name, _), row in solved.items() if name == TRUTH)
    for row in found["Mean Spearman between the truths of two dampings"]:
        assert row[row["damping"]] == pytest.approx(1)
    names = {path.name for path in (done / "report").glob("*.png")}
    expected = {"time-1e-2.png", "time-natural.png"}
    assert names == expected | {"iterations.png", "residuals.png", "ablations.png"}
    for name in names:
        content = (done / "report" / name).read_bytes()
        assert content.startswith(b"\x89PNG") and len(content) < 200_000


def test_a_run_goes_on_where_it_was(done, corpus, monkeypatch):
    before = (done / "report" / "spearman.json").read_text()
    lost = done / "points" / f"no-curvature {NATURAL}.npz"
    content = points_of(cache_of(done).load(lost.stem))
    lost.unlink()
    asked = []

    def again(bench, damping):
        asked.append(damping)
        return content

    for name in tasks.TASKS:
        monkeypatch.setitem(tasks.TASKS, name, again if name == "no-curvature" else pytest.fail)
    for name in tasks.DETAILED:
        monkeypatch.setitem(tasks.DETAILED, name, pytest.fail)
    run(corpus, done.parent)
    assert asked == [NATURAL] and lost.exists()
    assert (done / "report" / "spearman.json").read_text() == before


def test_what_was_made_from_another_model_or_other_data_is_made_again(corpus, tmp_path, monkeypatch):
    fits, products = [], []
    name, training, test = text.read_text(str(corpus), "")
    real = bench_module.fit
    monkeypatch.setattr(bench_module, "fit", lambda *args: (fits.append(1), real(*args)))
    found = bench_module.top_eigenpairs
    monkeypatch.setattr(
        bench_module, "top_eigenpairs", lambda *args, **more: (products.append(1), found(*args, **more))[1]
    )
    for seed, c, overwrite, count in (
        (0, MICRO, False, 1),
        (0, MICRO, False, 1),
        (0, replace(MICRO, solving=6), False, 2),
        (1, replace(MICRO, solving=6), True, 3),
    ):
        world = make_world(tmp_path, (name, training, test), c, seed, overwrite=overwrite)
        own = Bench(world, c, tmp_path, 0, "cpu")
        assert own.factors and own.eigenpairs
        assert len(fits) == len(products) == count
    with pytest.raises(MsifError, match="made with other settings: choose another --output, or add --overwrite"):
        make_world(tmp_path, (name, training, test), MICRO, 2)


# --- mistakes


def test_text_errors(tmp_path, monkeypatch):
    with pytest.raises(MsifError, match=r"holds no train\.txt"):
        run(tmp_path / "nowhere", tmp_path)
    short = tmp_path / "short"
    short.mkdir()
    for name in ("train.txt", "test.txt"):
        (short / name).write_text("\n".join(lines(5, 3)))
    with pytest.raises(MsifError, match="too few for this size: give a longer text"):
        run(short, tmp_path)

    def offline():
        raise MsifError("the Penn Treebank cannot be had.")

    monkeypatch.setattr(text, "_penn_treebank", offline)
    with pytest.raises(MsifError, match="give --corpus with a folder"):
        text.read_text(None, str(tmp_path))
    with pytest.raises(MsifError, match="cannot be had"):
        text.read_text("ptb", str(tmp_path))
    (tmp_path / "wikitext2").mkdir()
    for name in ("valid.txt", "test.txt"):
        (tmp_path / "wikitext2" / name).write_text(f" \n {name} = \n")
    assert text.read_text(None, str(tmp_path)) == ("wikitext2", ["valid.txt ="], ["test.txt ="])


def test_an_unknown_size_and_a_folder_of_other_settings(done, corpus, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(["--size", "huge"])
    assert stopped.value.code == 2 and "invalid choice: 'huge'" in capsys.readouterr().err
    with pytest.raises(MsifError, match="made with other settings"):
        run(corpus, done.parent, "--seed", "1")
