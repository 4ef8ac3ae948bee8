"""One world for all tests of the commands, commands that must fail, and caches that go away."""

import re

import pytest
from worlds import ALL, FACTS, QUERY, World, fit_factors, influence, near, save_classifier, save_lm, write_rows


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    model = save_lm(folder / "base")
    near(model, folder / "tuned")
    save_classifier(folder / "judge")
    write_rows(folder / "corpus.jsonl", [{"id": f"doc-{n}", "text": text} for n, text in enumerate(FACTS)])
    pairs = [{"prompt": "Where was Ada born?", "completion": " Linz"}, {"prompt": "What is late?", "completion": " I"}]
    write_rows(folder / "pairs.jsonl", pairs)
    write_rows(folder / "labels.jsonl", [{"text": t, "label": n % 3} for n, t in enumerate(FACTS)])
    assert (
        fit_factors("--model", folder / "base", "--data", folder / "corpus.jsonl", "--output", folder / "base_factors")
        == 0
    )
    assert (
        fit_factors("--model", folder / "tuned", "--data", folder / "pairs.jsonl", "--output", folder / "tuned_factors")
        == 0
    )
    task = ["--task", "classification", "--data", folder / "labels.jsonl"]
    assert fit_factors("--model", folder / "judge", *task, "--output", folder / "judge_factors") == 0
    return World(folder)


@pytest.fixture(scope="session")
def multi_stage(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("multi-stage") / "out"
    assert influence(*world.pair, *world.factors, *QUERY, *ALL, "--top-k", 3, "--output", folder) == 0
    return folder


@pytest.fixture(autouse=True, scope="session")
def caches(tmp_path_factory):
    """Caches of `datasets` and of embeddings that go away, for this process and for those that it starts."""
    import datasets

    patch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("caches")
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "datasets")
    patch.setenv("HF_DATASETS_CACHE", str(folder / "datasets"))
    datasets.disable_progress_bars()  # the commands see to it before datasets is imported
    patch.setenv("MSIF_CACHE", str(folder / "msif"))
    yield
    datasets.enable_progress_bars()
    patch.undo()


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def refused(tmp_path, capfd):
    """Runs a command that must fail with one sentence, and leave everything as it was."""

    def check(command, match, *arguments):
        before = files(tmp_path)
        capfd.readouterr()
        status = command(*arguments)
        out, err = capfd.readouterr()
        assert (status, out) == (2, ""), (out, err)
        assert re.fullmatch(r"error: [^\n]+\n", err), err
        assert re.search(match, err), err
        assert "Traceback" not in err and err.rstrip().endswith((".", ")", "rights")), err
        assert files(tmp_path) == before
        return err

    return check


@pytest.fixture
def fit(world, refused, tmp_path):
    """A fit of the base model that is refused; ``changes`` replace flags."""

    def check(match, *more, **changes):
        flags = {"model": world.base, "data": world.folder / "corpus.jsonl", "output": tmp_path / "out", **changes}
        given = [part for name, value in flags.items() for part in (f"--{name.replace('_', '-')}", value)]
        return refused(fit_factors, match, *given, *more)

    return check


@pytest.fixture
def explain(world, refused, tmp_path):
    """An influence run on the pair that is refused; ``changes`` replace flags, None leaves them out."""

    def check(match, *more, **changes):
        flags = {
            "pretrained": world.base,
            "finetuned": world.tuned,
            "pretrained_factors": world.base_factors,
            "finetuned_factors": world.tuned_factors,
            "corpus": world.folder / "corpus.jsonl",
            "query": "Where was Ada born?",
            "completion": " Linz",
            "candidates": "all",
            "output": tmp_path / "out",
        }
        kept = {name: value for name, value in {**flags, **changes}.items() if value is not None}
        given = [part for name, value in kept.items() for part in (f"--{name.replace('_', '-')}", value)]
        return refused(influence, match, *given, *more)

    return check


@pytest.fixture
def data(tmp_path):
    """Writes a data file."""

    def write(name, content):
        path = tmp_path / name
        path.write_text(content) if isinstance(content, str) else write_rows(path, content)
        return path

    return write
