"""Commands that the pages show can be typed."""

import re
import shlex
from pathlib import Path

import pytest

from msif import average, build_index, fit_factors, foretell, influence
from msif import page as html_page
from msif.attribution.methods import usual_candidates
from msif.cli.checks import check_options

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").rglob("*.md") if "results" not in p.parts)]
HOW_TO = [page for page in PAGES if page.parent.name == "how-to"]
COMMANDS = (fit_factors, influence, build_index, foretell, average, html_page)
PARSERS = {f"msif.{command.__name__.rpartition('.')[2]}": command.parser() for command in COMMANDS}
CODE = re.compile(r"^```(?:sh|bash)?\n(.*?)^```|^((?: {4}.*\n|\n)+)", re.M | re.S)


def commands_of(text: str) -> list[tuple[str, list[str]]]:
    """(module, arguments) of every command of msif in code blocks, continuations joined."""
    found = []
    for fenced, indented in CODE.findall(text):
        lines = re.sub(r"\\\n\s*", "", fenced or indented).replace("$'", "'").splitlines()
        for line in lines:
            called = re.match(r"\s*(?:python|torchrun .*?) -m (msif\.\w+)(.*)", line)
            if called:
                found.append((called[1], shlex.split(called[2])))
    return found


def flags_of(arguments: list[str]) -> list[str]:
    return [word.strip("[]()") for word in arguments if re.match(r"[\[(]*--[a-z]", word)]


SHOWN = [(path, *command) for path in PAGES for command in commands_of(path.read_text(encoding="utf-8"))]


def test_commands_are_found_on_every_page_that_is_about_them():
    pages = {path.relative_to(ROOT).as_posix() for path, *_ in SHOWN}
    how_to = {p.relative_to(ROOT).as_posix() for p in HOW_TO if p.stem != "add-a-method"}
    assert {"README.md", "docs/tutorial.md", "docs/user-guide.md", "docs/scaling.md", *how_to} <= pages


@pytest.mark.parametrize(
    ("path", "module", "arguments"), SHOWN, ids=[f"{p.stem}-{n}" for n, (p, *_) in enumerate(SHOWN)]
)
def test_every_flag_that_a_page_shows_exists(path, module, arguments):
    known = {flag for action in PARSERS[module]._actions for flag in action.option_strings}
    assert not [flag for flag in flags_of(arguments) if flag not in known]


@pytest.mark.parametrize(
    "path", [p for p in PAGES if p.parent.name == "how-to" or p.stem in ("tutorial", "index")], ids=str
)
def test_values_of_the_how_to_pages_are_accepted(path):
    for module, arguments in commands_of(path.read_text(encoding="utf-8")):
        PARSERS[module].parse_args(arguments)  # exits on what it does not know
        if module == "msif.influence" and "--config" not in arguments:
            args = PARSERS[module].parse_args(arguments)
            args.candidates = args.candidates or usual_candidates(args.method, args.index)
            check_options(args, PARSERS[module].given(arguments))


@pytest.mark.parametrize("path", HOW_TO, ids=lambda p: p.stem)
def test_python_of_the_how_to_pages_compiles_and_imports(path):
    for block in re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S):
        exec(compile(block, path.name, "exec"), {"__name__": "page"})


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.stem)
def test_links_lead_to_files(path):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text(encoding="utf-8")):
        assert target.startswith("http") or (path.parent / target).exists(), target
