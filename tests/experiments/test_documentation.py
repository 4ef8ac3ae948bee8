"""What README and docs/ say runs and is complete."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from torch import nn

from experiments.demo import demo, train
from experiments.demo.world import WorldSize
from msif import build_index, fit_factors, influence
from msif.data.batching import batches_of
from msif.data.queries import Query, encode_queries

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks_of(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S)


def commands_of_readme() -> list[list[str]]:
    """The README's `python -m msif...` lines, continuations joined."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.strip().replace("$'", "'") for line in text.splitlines() if line.startswith("    python -m msif.")]
    return [shlex.split(line)[2:] for line in lines]


@pytest.mark.parametrize("command", [fit_factors, influence, build_index], ids=lambda command: command.__name__)
def test_every_flag_is_in_the_user_guide(command):
    guide = (ROOT / "docs" / "user-guide.md").read_text(encoding="utf-8")
    flags = {flag for action in command.parser()._actions for flag in action.option_strings if flag.startswith("--")}
    assert not [flag for flag in flags if f"`{flag}`" not in guide and f"`{flag} " not in guide]


def test_the_readme_names_only_flags_that_there_are():
    parsers = {f"{command.__name__}": command.parser() for command in (fit_factors, influence, build_index)}
    commands = commands_of_readme()
    assert len(commands) >= 6
    for name, *arguments in commands:
        parsers[name].parse_args(arguments)  # exits on a flag or value that it does not know


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        if target.startswith("http"):
            continue
        other = (page.parent / path) if path else page
        assert other.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", other.read_text(encoding="utf-8"), re.M)
            anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, target


RESULTS = {
    "digits": "digits",
    "adapters": "adapters",
    "counterfactual": "counterfactual",
    "peers": "peers",
    "replaced-head": "replaced_head",
    "fact-tracing": "fact_tracing",
    "proximity": "proximity",
    "trackstar": "trackstar",
}


def cells(line: str) -> tuple[str, ...]:
    return tuple(cell.strip() for cell in line.strip("|").split("|"))


@pytest.mark.parametrize("page", RESULTS)
def test_figures_in_a_pages_tables_are_those_of_the_run(page):
    """Line by line, and the plots are there."""
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    files = (ROOT / "docs" / "results" / RESULTS[page]).rglob("*.md")
    found = {cells(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()}
    table = [line for line in text.splitlines() if line.startswith("|") and re.search(r"\d\.\d\d", line)]
    assert len(table) > 5 and not [line for line in table if cells(line) not in found]
    for image in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text):
        assert (ROOT / "docs" / image).stat().st_size < 200_000


@pytest.mark.parametrize(("results", "leading"), [("counterfactual/lds", 3), ("peers/peers", 4)])
def test_figures_of_methods_in_the_readme_are_those_of_the_runs(results, leading):
    """The first columns of its tables' rows."""
    found = {
        cells(line)[:leading] for line in (ROOT / "docs" / "results" / f"{results}.md").read_text("utf-8").splitlines()
    }
    rows = [cells(line) for line in (ROOT / "README.md").read_text("utf-8").splitlines() if line.startswith("|")]
    scored = [row for row in rows if len(row) == 4 and re.search(r"\d\.\d{3} \[", row[leading - 1])]
    assert len(scored) > 5 and not [row for row in scored if row[:leading] not in found]


def test_figures_of_the_demo_are_those_of_its_run():
    """In the README all rows of the table, in the guide what it says of damping."""
    (table,) = json.loads((ROOT / "docs" / "results" / "demo" / "demo.json").read_text(encoding="utf-8"))["tables"]
    rows = [cells(line) for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if "|" in line]
    expected = [
        (r["a true source ranks"], f"{r['first']:.0%}", f"{r['within ten']:.0%}", f"{r['MRR']:.2f}")
        for r in table["rows"]
    ]
    spaced = [(title, first.replace("%", " %"), ten.replace("%", " %"), mrr) for title, first, ten, mrr in expected]
    assert [row for row in rows if row in spaced] == spaced
    assert table["title"].split(",")[0] in " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    mrr = {title.rpartition(", ")[2]: value for title, _, _, value in expected}
    said = f"MRR is {mrr['`--alpha 0`']} with `--alpha 0`, {mrr['multi-stage influence']} by default, and"
    guide = " ".join((ROOT / "docs" / "user-guide.md").read_text(encoding="utf-8").split())
    assert f"{said} {mrr['`--damping auto`']} with `--damping auto`" in guide


@pytest.fixture
def small_demo(tmp_path, monkeypatch):
    """What `make demo` leaves, from a small world and two models of a few steps, in the current folder."""
    monkeypatch.setattr(
        train, "WorldSize", lambda: WorldSize(people=6, towns=4, companies=4, wordings=3, distractors=9)
    )
    monkeypatch.setattr(train, "MODEL", {"layers": 1, "hidden": 16, "heads": 2})
    monkeypatch.setattr(train, "VOCABULARY", 400)
    for schedule in (train.PRETRAINING, train.FINETUNING):
        monkeypatch.setitem(schedule, "epochs", 1)
    monkeypatch.chdir(tmp_path)
    train.make("results/demo")
    demo.ask(Path("results/demo/world"), Path("results/demo/questions.jsonl"), 2)


def test_the_readme_example_runs(small_demo, capsys):
    (example,) = blocks_of("README.md")
    assert len(example.strip().splitlines()) <= 32
    exec(compile(example, "README.md", "exec"), {"__name__": "example"})
    lines = capsys.readouterr().out.strip().splitlines()
    scores = [float(line.split()[0]) for line in lines]
    assert len(lines) == 5 and scores == sorted(scores, reverse=True)


def test_the_user_guide_examples_run(small_demo):
    guide: dict = {"__name__": "guide"}
    for block in blocks_of("docs/user-guide.md"):
        if "pandas" not in block:  # the one that reads the results of the README's tour
            exec(compile(block, "user-guide.md", "exec"), guide)
    readme: dict = {"__name__": "readme"}
    exec(compile(blocks_of("README.md")[0], "README.md", "exec"), readme)
    stages = readme["pt"], readme["ft"]
    (first, last), factors = (stage.side for stage in stages), [stage.store for stage in stages]
    query = Query("0", "Question: Where?\nAnswer:", " Here")
    queries = batches_of(encode_queries([query], stages[1].loaded.tokenizer), 8192)
    folders = ("results/demo/pretrained", "results/demo/finetuned")
    for scorer in (
        guide["source"](first, last, *factors, *folders),
        guide["three_stages"](first, last, [factors[0], *factors]),
    ):
        assert torch.isfinite(torch.from_numpy(scorer.score(queries, stages[0].batches).values)).all()

    torch.manual_seed(0)
    images = [
        guide["Digits"](torch.randn(6, 5), torch.randint(0, 3, (6,)), torch.arange(6) + 6 * number) for number in (0, 1)
    ]
    test = [guide["Digits"](torch.randn(2, 5), torch.tensor([0, 1]), torch.arange(2))]
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    assert guide["rank_training_images"](model, images, test, "factors/digits").values.shape == (2, 12)
