import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).parent))

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def seeded():
    import torch  # not at the top: the process that hands out tests would import it, too

    torch.manual_seed(0)


def pytest_collection_modifyitems(items):
    import torch

    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if "shared" in item.keywords and not SHARED.is_dir():
            item.add_marker(pytest.mark.skip(reason="needs ../shared/data"))


@pytest.fixture
def shared_data() -> Path:
    return SHARED


@pytest.fixture(scope="session")
def zygote(tmp_path_factory):
    """Starts the processes of a test."""
    from processes import Zygote

    folder = tmp_path_factory.mktemp("zygote")
    started = Zygote(HF_DATASETS_CACHE=str(folder / "datasets"), MSIF_CACHE=str(folder / "msif"))
    yield started
    started.stop()
