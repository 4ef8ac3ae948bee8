"""What a wheel and an sdist hold, and that an installed wheel answers."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOT_SHIPPED = ("tests", "experiments", "benchmarks", "docs")
BUILD = "from setuptools import build_meta as b; b.build_wheel({out!r}); b.build_sdist({out!r})"


pytestmark = pytest.mark.skipif(
    int(version("setuptools").partition(".")[0]) < 77, reason="builds need setuptools 77 or later"
)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with wheel and sdist, made from a copy: a build leaves things beside what it builds."""
    source, out = tmp_path_factory.mktemp("source") / "msif", tmp_path_factory.mktemp("dist")
    left_out = shutil.ignore_patterns(
        ".*", "build", "dist", "*.egg-info", "__pycache__", "results", "factors", "*.part"
    )
    shutil.copytree(ROOT, source, ignore=left_out)
    command = [sys.executable, "-c", BUILD.format(out=str(out))]
    made = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=120)
    assert made.returncode == 0, made.stderr
    return out


def the_only(folder: Path, pattern: str) -> Path:
    (file,) = folder.glob(pattern)
    return file


def test_the_wheel_is_the_package_and_nothing_else(built):
    with zipfile.ZipFile(the_only(built, "*.whl")) as wheel:
        names = wheel.namelist()
    package = ROOT / "msif"
    files = [file.relative_to(ROOT).as_posix() for file in package.rglob("*") if file.is_file()]
    assert not {file for file in files if "__pycache__" not in file} - set(names)
    assert "msif/py.typed" in names
    assert {name.split("/")[0].removesuffix(".dist-info").partition("-")[0] for name in names} == {"msif"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_sdist_holds_what_builds_the_wheel(built):
    with tarfile.open(the_only(built, "*.tar.gz")) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "msif/py.typed"} <= names
    assert not [name for name in names if name.split("/")[0] in NOT_SHIPPED]


def test_an_installed_wheel_answers(built, tmp_path):
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"]
    wheel = str(the_only(built, "*.whl"))
    done = subprocess.run([*pip, "--target", str(tmp_path), wheel], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    scripts = Path(tmp_path, "bin")
    for command in ("msif", "msif-fit", "msif-influence", "msif-index"):
        line = [sys.executable, str(scripts / command), "--help"]
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        said = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
        assert said.returncode == 0 and said.stdout.startswith(f"usage: {command} "), said.stderr
