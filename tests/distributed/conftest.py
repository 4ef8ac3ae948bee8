import pytest
from processes import Zygote


@pytest.fixture(scope="session")
def zygote():
    started = Zygote()
    yield started
    started.end()
