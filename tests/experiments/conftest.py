"""`experiments` is not installed with the package: it is imported from the checkout. What several files train once."""

import sys
from pathlib import Path

import pytest

root = str(Path(__file__).resolve().parents[2])
if root not in sys.path:
    sys.path.insert(0, root)


@pytest.fixture(scope="session")
def pair_folder(tmp_path_factory):
    """A pair of fact tracing, its models trained for one epoch each; not to be changed."""
    from births import save_births

    return save_births(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """The text of the comparison of estimators; not to be changed."""
    from micro import write_text

    return write_text(tmp_path_factory.mktemp("text") / "rhyme")


@pytest.fixture(scope="session")
def done(corpus, tmp_path_factory):
    """A finished comparison of estimators; to be left as it was."""
    from micro import run

    output = tmp_path_factory.mktemp("run")
    run(corpus, output)
    return output / "tiny"
