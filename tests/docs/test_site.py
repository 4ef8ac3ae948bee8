"""The site builds, and every link and anchor in it leads somewhere."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("mkdocs", "material", "mkdocstrings_handlers")

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in NEEDED), reason="needs the extra docs: pip install -e '.[docs]'"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    line = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_every_page_is_built(site):
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").with_suffix("")
        built = site / name.parent / "index.html" if name.name == "index" else site / name / "index.html"
        assert built.is_file(), name


def test_every_page_of_a_reader_is_in_the_navigation(site):
    home = (site / "index.html").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").with_suffix("")
        if name.parts[0] != "results" and name.name != "index":
            assert f'href="{name.as_posix()}/"' in home, name


def test_the_reference_has_every_public_name(site):
    import msif

    pages = "".join(page.read_text(encoding="utf-8") for page in (site / "api").rglob("*.html"))
    missing = [name for name, home in msif._HOME.items() if f'id="{home}.{name}"' not in pages]
    assert not missing
