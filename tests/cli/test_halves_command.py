"""--halves: what a run with it needs, writes and refuses."""

import json
from dataclasses import replace

import pytest
import yaml
from test_methods import SGD, TAU, copied
from worlds import ALL, FACTS, QUERY, assert_sums, by_candidate, influence, shown, write_rows

import msif
from msif.cli import dry_run
from msif.data.batching import batches_of
from msif.data.queries import Query, encode_queries


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    """The pair with what a Trainer leaves."""
    folder = tmp_path_factory.mktemp("trained")
    return {name: copied(world.folder / name, folder / name, SGD) for name in ("base", "tuned")}


def flags(world, trained):
    pair = ["--pretrained", trained["base"], "--finetuned", trained["tuned"], "--corpus", world.folder / "corpus.jsonl"]
    return [*pair, *world.factors, *QUERY, *ALL]


def test_a_run_is_the_librarys_and_goes_on(world, trained, tmp_path):
    given = flags(world, trained)
    assert influence(*given, "--output", tmp_path / "plain") == 0
    assert influence(*given, "--halves", "2:0.5", "--output", tmp_path / "near") == 0
    found = by_candidate(tmp_path / "near")
    assert_sums(shown(tmp_path / "near"))
    assert found != pytest.approx(by_candidate(tmp_path / "plain"), rel=1e-3)
    assert yaml.safe_load((tmp_path / "near/config.yaml").read_text())["halves"] == "2:0.5"
    first, last = json.loads((tmp_path / "near/manifest.json").read_text())["stages"]
    assert first["scales"] and last["scales"]
    # it is complete, and another number is another run
    assert influence("--config", tmp_path / "near/config.yaml", "--output", tmp_path / "near") == 0
    assert influence(*given, "--halves", 2, "--output", tmp_path / "near") == 2
    first, last = (msif.Stage(trained[name], factors=world.folder / f"{name}_factors") for name in ("base", "tuned"))
    query = {"prompt": QUERY[1], "completion": QUERY[3]}
    options = {"damping": msif.Damping(alpha="auto"), "halves": "2:0.5"}
    result = msif.attribute([first, last], [query], "all", corpus=world.folder / "corpus.jsonl", **options)
    own = {f"doc-{row}": score for row, score in result.scores().items()}
    assert own == pytest.approx(found, rel=1e-4, abs=1e-9)


def test_a_single_stage_and_solvers_take_them(world, trained, tmp_path):
    given = flags(world, trained)
    for more in (["--method", "single-stage"], ["--ihvp", "ekfac-cg", "--ihvp-iterations", 2], ["--query-rank", 2]):
        name = str(more[1])
        assert influence(*given, *more, "--halves", 2, "--output", tmp_path / name) == 0
        assert len(by_candidate(tmp_path / name)) == len(FACTS)
    data = write_rows(tmp_path / "moved.jsonl", json_rows(world))
    where = ["--pretrained-data", data, "--ihvp-examples", 3]
    assert influence(*given, "--halves", 2, *where, "--output", tmp_path / "few") == 0
    assert influence(*given, "--halves", 2, "--output", tmp_path / "all") == 0
    assert by_candidate(tmp_path / "few") != by_candidate(tmp_path / "all")


def test_noise_alone_takes_no_data(world, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(msif.Stage, "training", None)
    given = flags(world, trained)
    assert influence(*given, "--halves", "2:0:1", "--output", tmp_path / "noise") == 0
    assert influence(*given, "--halves", "2:0:0.5", "--output", tmp_path / "less") == 0
    assert by_candidate(tmp_path / "noise") != pytest.approx(by_candidate(tmp_path / "less"), rel=1e-3)
    assert_sums(shown(tmp_path / "noise"))


def json_rows(world):
    return [json.loads(line) for line in (world.folder / "corpus.jsonl").read_text().splitlines()]


def test_an_estimate_counts_models_and_data(world, trained, capfd, monkeypatch):
    plans, describe = [], dry_run.describe_scoring
    monkeypatch.setattr(dry_run, "describe_scoring", lambda *args: plans.append(args[1]) or describe(*args))
    given = [*flags(world, trained), "--dry-run", "--memory", "1GB"]
    assert influence(*given) == 0
    plain = capfd.readouterr().out
    assert influence(*given, "--halves", 4) == 0
    near = capfd.readouterr().out
    assert weights_of(near) > 2.5 * weights_of(plain)
    assert influence(*given, "--halves", "4:0:1") == 0
    assert weights_of(capfd.readouterr().out) == weights_of(near)
    # noise alone takes no data
    assert [len(plan.once) for plan in plans] == [0, 1, 0] and not any(plan.stages for plan in plans)
    assert plans[1].once[0].documents == len(FACTS)
    assert plans[1].room < plans[0].room


def weights_of(described):
    line = next(line for line in described.splitlines() if line.startswith("memory"))
    number, unit = line.removeprefix("memory      about ").split()[:2]
    return float(number) * {"B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9}[unit]


def test_what_they_need_is_told(world, trained, explain):
    explain(
        "--halves reads how the first model was trained, and .* sum to 0: give --learning-rate-sum above 0, or leave",
        *("--halves", 2, "--learning-rate-sum", 0, 1),
    )
    explain("there are 3 halves: they come in twos", "--halves", 3)
    explain("halves are 'few': write how many", "--halves", "few")
    explain("--method gdp does not read --halves", "--method", "gdp", "--halves", 2)
    explain("nothing reads --halves here: .*leave --index out", "--halves", 2, index="nowhere")
    explain("is not what the factors in .* were fitted on", "--halves", 2, "--pretrained-data",
            world.folder / "pairs.jsonl", pretrained=trained["base"])  # fmt: skip


def test_the_evidence_tells_what_no_file_does(world, trained, tmp_path):
    bare = [*world.pair, *world.factors, *QUERY, *ALL, "--alpha", 0]
    for name, halves in (("short", "1:0.01"), ("long", "1")):
        assert influence(*bare, "--halves", halves, "--output", tmp_path / name) == 0
    stages = [msif.Stage(world.pair[place], factors=world.factors[place]) for place in (1, 3)]
    first, last = (msif.FittedStage(stage.side, stage.store) for stage in stages)
    tokens = stages[0].store.manifest["counts"]["supervised"]
    tau = msif.evidence_tau(first.side, first.factors, tokens)
    known = replace(first, tau=tau, batches=stages[0].training())
    scorer = msif.build_scorer("multi-stage", known, last, msif.Damping(alpha=0.0), halves=1)
    encoded = encode_queries([Query("0", QUERY[1], QUERY[3])], stages[1].loaded.tokenizer)
    documents = msif.Stage(world.base, world.folder / "corpus.jsonl").batches
    scores = scorer.score(batches_of(encoded, 8192), documents).values[0]
    own = {f"doc-{row}": score for row, score in enumerate(scores)}
    assert own == pytest.approx(
        by_candidate(tmp_path / "long"), rel=1e-4, abs=1e-6 * float(max(map(abs, own.values())))
    )
    assert own != pytest.approx(by_candidate(tmp_path / "short"), rel=1e-3)


def test_learning_rates_stand_for_a_training(world, trained, tmp_path):
    assert influence(*flags(world, trained), "--halves", 2, "--alpha", 0, "--output", tmp_path / "known") == 0
    bare = [*world.pair, *world.factors, *QUERY, *ALL, "--alpha", 0, "--learning-rate-sum", TAU, TAU]
    assert influence(*bare, "--halves", 2, "--output", tmp_path / "given") == 0
    known = by_candidate(tmp_path / "known")
    assert by_candidate(tmp_path / "given") == pytest.approx(known, rel=1e-4, abs=1e-7)
