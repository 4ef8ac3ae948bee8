"""The setting of torch, which is there without a GPU too."""

from threading import Barrier, Thread

import pytest
import torch
from torch.backends.cuda import matmul

from msif.models.tensor_cores import products_of, tf32

NAME, ON = ("fp32_precision", "tf32") if hasattr(matmul, "fp32_precision") else ("allow_tf32", True)


@pytest.fixture(autouse=True)
def own():
    """The setting of a user, which is another than torch's own."""
    before = getattr(matmul, NAME)
    setattr(matmul, NAME, "ieee" if ON == "tf32" else False)
    yield getattr(matmul, NAME)
    setattr(matmul, NAME, before)


def test_it_comes_back_also_after_an_error(own):
    with pytest.raises(KeyError), tf32():
        assert getattr(matmul, NAME) == ON
        raise KeyError
    assert getattr(matmul, NAME) == own


def test_it_stays_until_the_last_one_is_out(own):
    with tf32():
        with tf32():
            pass
        assert getattr(matmul, NAME) == ON
    assert getattr(matmul, NAME) == own


def test_threads_that_overlap_leave_it_as_it_was(own):
    inside, left = Barrier(2), Barrier(2)

    def first():
        with tf32():
            inside.wait()
        left.wait()

    def second():
        inside.wait()
        with tf32():
            left.wait()

    threads = [Thread(target=work) for work in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert getattr(matmul, NAME) == own


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_on_the_cpu_leaves_it_alone(own, dtype):
    with products_of(torch.nn.Linear(1, 1).to(dtype))():
        assert getattr(matmul, NAME) == own
