"""The comparison of estimators on a model of a thousand parameters: exact answers, costs, reports, resumption."""

import json
import random
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from experiments.spearman import __main__ as command
from experiments.spearman import bench as bench_module
from experiments.spearman import direct, points, tasks, text, truth
from experiments.spearman.bench import Bench, Cost
from experiments.spearman.configuration import NATURAL, RELATIVE, TINY
from experiments.spearman.dense import flat, path_of
from experiments.spearman.iterative import arnoldi, cg, preconditioned_cg
from experiments.spearman.truth import FULL, TRUTH
from experiments.spearman.world import make_world
from msif.curvature.arnoldi import top_eigenpairs
from msif.curvature.ggn import GGN
from msif.errors import MsifError

MICRO = replace(
    TINY, hidden=4, heads=1, dampings=("1e-2", NATURAL), candidates=10, arnoldi=(6, 3), full=2, label_samples=(2,)
)
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


def lines(count, seed):
    source = random.Random(seed)
    words = ["the", "a", "cat", "dog", "river", "stone", "walks", "sees", "finds", "under", "near", "old", "where"]
    return [" ".join(source.choices(words, k=9)) for _ in range(count)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text") / "rhyme"
    folder.mkdir()
    (folder / "train.txt").write_text("\n\n".join(lines(60, 1)), encoding="utf-8")
    (folder / "test.txt").write_text("\n".join(lines(30, 2)), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def micro():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(command.SIZES, "tiny", MICRO)
        yield


def run(corpus, output, *more):
    command.main(["--size", "tiny", "--jobs", "1", "--corpus", str(corpus), "--output", str(output), *more])


@pytest.fixture(scope="module")
def done(corpus, micro, tmp_path_factory):
    output = tmp_path_factory.mktemp("run")
    run(corpus, output)
    return output / "tiny"


@pytest.fixture(scope="module")
def bench(done, corpus):
    name, training, test = text.read_text(str(corpus), "")
    return Bench(make_world(done, (name, training, test), MICRO, 0), MICRO, done, 0, "cpu")


def settings_of(done):
    configuration = json.loads((done / "report" / "spearman.json").read_text())["configuration"]
    return {key: configuration[key] for key in ("seed", "model", "configuration")}


def kept(done):
    """All points of the run."""
    found = [points.load(path, settings_of(done)) for path in sorted((done / "points").iterdir())]
    assert found and None not in found
    return [point for some in found for point in some]


def tables(folder):
    return {table["title"]: table["rows"] for table in json.loads((folder / "spearman.json").read_text())["tables"]}


def near(a, b, tolerance):
    assert np.linalg.norm(a - b) < tolerance * np.linalg.norm(b)


def matrix(bench):
    """H as it was put together."""
    return np.concatenate([np.load(path_of(bench, part)) for part in range(MICRO.dense_parts)])


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
    content = points.load(lost, settings_of(done))
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


def test_what_was_made_from_another_model_or_other_data_is_made_again(corpus, micro, tmp_path, monkeypatch):
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


# --- one H, one λ


def test_h_column_by_column_is_the_ggn(bench):
    H = matrix(bench)
    side = bench.side_of(bench.world.model, torch.float64)
    source = torch.Generator().manual_seed(0)
    v = {module.name: torch.randn(3, *module.shape, dtype=torch.float64, generator=source) for module in side.tracked}
    product = flat(GGN(side.model, side.tracked, side.objective, bench.world.solving).matvec(v)).numpy()
    near(flat(v).numpy() @ H, product, 1e-10)
    near(H, H.T, 1e-10)
    assert np.linalg.eigvalsh(H)[0] > -1e-10 * np.linalg.eigvalsh(H)[-1]


@pytest.mark.parametrize("damping", ["1e-2", RELATIVE])
def test_the_dense_truth_is_that_of_preconditioned_cg(bench, damping):
    (dense,) = truth.truth(bench, damping)
    c = replace(MICRO, dense_parts=0, truth_tolerance=1e-5)
    (solved,) = truth.truth(Bench(bench.world, c, bench.output, 0, "cpu"), damping)
    assert dense.budget is None and max(dense.residual) < 1e-9
    assert solved.budget > 0 and max(solved.residual) < 2e-5
    near(solved.scores, dense.scores, 1e-3)


def test_exact_groups_invert_what_lies_within_them(bench):
    H = torch.from_numpy(matrix(bench)).clone()
    H.diagonal().add_(1e-2)
    b = flat(bench.gradients).double()
    found = {point.method: point.scores for point in truth.exact_groups(bench, "1e-2")}
    G = flat(bench.candidate_gradients).double()
    start, x = 0, torch.zeros_like(b)
    for module in bench.side.tracked:
        end = start + module.shape[0] * module.shape[1]
        x[:, start:end] = torch.linalg.solve(H[start:end, start:end], b[:, start:end].T).T
        start = end
    near(found["exact modules"], (x @ G.T).numpy(), 1e-6)
    # with one layer, a layer is everything
    near(found["exact layers"], truth.truth(bench, "1e-2")[0].scores, 1e-6)


def test_curves_start_at_ek_fac_and_end_at_the_truth(bench):
    c = replace(MICRO, truth_tolerance=1e-3, long_preconditioned=(0, 2, 5000), long_cg=(2, 5000))
    longer = Bench(bench.world, c, bench.output, 0, "cpu")
    (exact,), (factored, _) = truth.truth(bench, "1e-2"), direct.ekfac(bench, "1e-2")
    for method in (cg, preconditioned_cg):
        curve = method(longer, "1e-2")
        # met the tolerance before its last budget
        assert curve[-1].budget not in (2, 5000) and max(curve[-1].residual) < 2e-3
        near(curve[-1].scores, exact.scores, 0.05)
        assert [point.query for point in curve] == sorted(point.query for point in curve)
        extra = 1 if method is preconditioned_cg else 0
        assert curve[-1].passes == curve[-1].budget + extra
        if extra:
            assert (curve[0].budget, curve[0].passes) == (0, 0)
            near(curve[0].scores, factored.scores, 1e-6)
            assert curve[0].residual == pytest.approx(factored.residual)
    # another set of sequences has another H
    assert min(curve[-1].held_out_residual) > 10 * max(curve[-1].residual)


def test_arnoldi_of_all_eigenvectors_is_the_truth(bench):
    H = matrix(bench)
    # rounding errors of null eigenvalues are not a question of this test
    lifted, size = Dense(torch.from_numpy((H + H.T) / 2 + 1e-3 * np.eye(len(H)))), len(H)
    found = top_eigenpairs(lifted, bench.gradients, top=size, iterations=size)
    every = Bench(bench.world, bench.c, bench.output, 0, "cpu")
    every.__dict__["eigenpairs"] = (replace(found, values=found.values - 1e-3), Cost(1.0, None))
    (exact,) = truth.truth(bench, "1e-2")
    for one in arnoldi(every, "1e-2"):
        near(one.scores, exact.scores, 1e-3)
        assert (one.overhead, one.overhead_passes, one.passes) == (1.0, size, 0.0)


@dataclass
class Dense:
    """A matrix as an operator."""

    H: torch.Tensor

    def matvec(self, vectors):
        products = flat(vectors).double() @ self.H
        parts = products.split([V[0].numel() for V in vectors.values()], dim=1)
        return {name: part.view_as(V).to(V.dtype) for (name, V), part in zip(vectors.items(), parts, strict=True)}


def test_lambda_is_the_same_for_all_methods(bench, monkeypatch):
    sizes = {module.name: module.shape[0] * module.shape[1] for module in bench.side.tracked}
    shift = bench.shift(RELATIVE)
    for name, factors in bench.factors.items():
        assert torch.allclose(shift[name], 0.1 * factors.Lambda.mean((1, 2)))
    # blocks of a module have as many parameters
    total = sum(shift[name].mean().item() * size for name, size in sizes.items())
    assert bench.mean_shift(RELATIVE) == pytest.approx(total / sum(sizes.values()))
    assert bench.mean_shift("1e-2") == 0.01 and all((value > 0).all() for value in bench.shift(NATURAL).values())
    given = []

    class Spy(direct.TRAKScorer):
        def __init__(self, *args, **options):
            given.append(options["damping"])
            super().__init__(*args, **options)

    monkeypatch.setattr(direct, "TRAKScorer", Spy)
    direct.trak(bench, "1e-2")
    # λ of a mean over tokens, where TRAK's kernel is a sum: 16 sequences of 7 predictions
    assert given == pytest.approx([0.01 * 16 * 7] * 3)


def test_queries_candidates_and_held_out_text_are_apart(bench):
    world = bench.world

    def rows(batches):
        return [tuple(row) for batch in batches for row in batch.input_ids.tolist()]

    training = {tuple(document.input_ids.tolist()) for document in world.training}
    assert {*rows(world.solving), *rows(world.candidates)} <= training
    assert not {*rows(world.queries)} & {*rows(world.held_out)}
    assert (len(rows(world.queries)), len(rows(world.candidates))) == (MICRO.queries, MICRO.candidates)
    assert len(rows(world.solving)) == len(rows(world.held_out)) == MICRO.solving
    assert bench.supervised == MICRO.solving * (MICRO.length - 1)


# --- mistakes


def test_text_errors(corpus, micro, tmp_path, monkeypatch):
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
