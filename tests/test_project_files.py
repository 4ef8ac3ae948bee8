"""Files that a stranger, a forge or a citation manager reads."""

import hashlib
import re
from pathlib import Path

import pytest
import yaml

import msif

ROOT = Path(__file__).resolve().parents[1]


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_licence_is_the_standard_text():
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest().startswith("cfc7749b96f63bd3")
    assert 'license = "Apache-2.0"' in read("pyproject.toml")


def test_the_citation_has_what_the_format_requires():
    citation = yaml.safe_load(read("CITATION.cff"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["version"] == msif.__version__ and citation["license"] == "Apache-2.0"
    for reference in citation["references"]:
        assert {"type", "title", "authors"} <= reference.keys()
    numbers = {identifier["value"] for one in citation["references"] for identifier in one["identifiers"]}
    assert {"arXiv:2308.03296", "arXiv:2405.12186"} <= numbers


def test_the_changelog_begins_with_this_version():
    dated = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d{2}-\d{2}$", read("CHANGELOG.md"), re.M)
    assert dated[0] == msif.__version__ and dated == sorted(dated, reverse=True)


def test_schema_that_the_changelog_names_is_the_one_that_is_read():
    from msif.curvature.store import SCHEMA

    assert f"this version reads schema {SCHEMA}" in " ".join(read("CHANGELOG.md").split())


def test_the_workflow_covers_every_python_that_is_promised():
    workflow = yaml.safe_load(read(".github/workflows/test.yml"))["jobs"]["test"]
    promised = re.findall(r"Python :: (3\.\d+)", read("pyproject.toml"))
    assert workflow["strategy"]["matrix"]["python"] == promised
    assert workflow["steps"][-1] == {"run": "make test"}


@pytest.mark.parametrize("name", ["bug.yml", "idea.yml"])
def test_issue_forms_are_forms(name):
    form = yaml.safe_load(read(f".github/ISSUE_TEMPLATE/{name}"))
    assert {"name", "description", "body"} <= form.keys()
    assert all({"type", "attributes"} <= part.keys() for part in form["body"])


def test_a_report_of_a_bug_has_what_makes_it_again():
    labels = [part["attributes"]["label"] for part in yaml.safe_load(read(".github/ISSUE_TEMPLATE/bug.yml"))["body"]]
    assert {"config.yaml", "msif --version"} <= set(labels)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", read(page)):
        assert target.startswith("http") or (ROOT / target).exists(), target
