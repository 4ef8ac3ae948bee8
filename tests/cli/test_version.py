"""What the commands say of themselves, and that it is quick."""

import re
import subprocess
import sys
from importlib.metadata import version

import pytest
import transformers
from processes import taken

import msif
from msif import build_index, fit_factors, influence
from msif.cli import scripts


def python(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("module", ["msif", "msif.fit_factors", "msif.influence", "msif.build_index"])
def test_version_names_what_a_report_of_a_problem_needs(module):
    start = taken()
    said = python("-m", module, "--version")
    assert taken() - start < 1.5
    parts = (f"msif {msif.__version__}", f"torch {version('torch')}", f"transformers {transformers.__version__}")
    assert said.returncode == 0 and all(part in said.stdout for part in parts)


def test_version_imports_nothing_heavy():
    code = (
        "import sys; from msif.cli.version import versions; versions(); "
        "assert not {'torch', 'transformers', 'numpy'} & sys.modules.keys()"
    )
    assert python("-c", code).returncode == 0


def test_the_version_is_that_of_the_package(pytestconfig):
    text = (pytestconfig.rootpath / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'^version = "(.*)"$', text, re.M).group(1) == msif.__version__
    assert f"## [{msif.__version__}]" in (pytestconfig.rootpath / "CHANGELOG.md").read_text(encoding="utf-8")


def test_a_library_that_is_missing_does_not_hide_the_others(monkeypatch):
    from msif.cli import version as told

    monkeypatch.setattr(told, "NAMED", ("no-such-library", "torch"))
    assert "no-such-library not installed, torch 2" in told.versions()


def test_msif_alone_lists_the_commands():
    said = python("-m", "msif")
    assert said.returncode == 0 and said.stdout.startswith("usage: python -m msif ")
    for name, (module, _) in scripts.COMMANDS.items():
        assert name in said.stdout and f"python -m {module}" in said.stdout


def test_msif_runs_nothing_itself():
    said = python("-m", "msif", "influence", "--query", "x")
    assert said.returncode == 2 and said.stderr.count("\n") == 1 and "'influence'" in said.stderr


@pytest.mark.parametrize(
    ("script", "command"), [("msif-fit", fit_factors), ("msif-influence", influence), ("msif-index", build_index)]
)
def test_help_has_the_name_that_was_called(script, command, monkeypatch):
    monkeypatch.setattr(sys, "argv", [f"/usr/bin/{script}"])
    text = command.parser().format_help()
    assert text.startswith(f"usage: {script} ") and f"\n  {script} --" in text and "python -m" not in text
    monkeypatch.setattr(sys, "argv", [command.__file__])
    text = command.parser().format_help()
    assert text.startswith(f"usage: python -m {command.__name__} ") and f"\n  python -m {command.__name__} --" in text


@pytest.mark.parametrize(("script", "function"), [("msif-fit", "fit"), ("msif-influence", "influence")])
def test_an_installed_command_says_a_mistake_in_a_sentence(script, function, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [script, "--no-such-flag"])
    with pytest.raises(SystemExit) as end:
        getattr(scripts, function)()
    assert end.value.code == 2 and "--no-such-flag" in capsys.readouterr().err
