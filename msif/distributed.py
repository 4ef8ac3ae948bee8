"""Many processes, one job: what ``torchrun`` started shares the batches, and adds up what it has.

All processes run the same code. Without ``torch.distributed`` there is one, and all of this costs nothing. A failing
process ends all others: whoever waits for it raises ``PeerError``.
"""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from itertools import count, islice
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from msif.atomic import HOST
from msif.data.documents import batches_after
from msif.errors import MsifError

T = TypeVar("T")

# some wait for a solver on another, or for the largest eigendecomposition; who dies is noticed by its connection
PATIENCE = timedelta(days=14)
CPU = torch.device("cpu")
ENDED = "another process of this run has ended: run the same again, and it goes on from what is done."


class PeerError(MsifError):
    """Another process failed, which says why itself, if it can."""


def active() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if active() else 0


def processes() -> int:
    return dist.get_world_size() if active() else 1


def processes_here() -> int:
    """Those that share this machine's memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", processes())) if active() else 1


def leads() -> bool:
    """Whether this process writes and tells what all have done."""
    return rank() == 0


def start() -> Any:
    """Joins the processes of ``torchrun``; returns the store that all of them reach, whoever dies."""
    store, number, size = next(dist.rendezvous("env://", timeout=timedelta(minutes=10)))
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    dist.init_process_group(store=store, rank=number, world_size=size, timeout=PATIENCE)
    if torch.cuda.is_available():
        own = _own_device()
        _devices["sharing"] = gathered(own).count(own)
    return dist.PrefixStore("msif", store)


def stop() -> None:
    wait()
    _of_cpu.cache_clear()
    dist.destroy_process_group()


@cache
def _of_cpu() -> Any:
    """For what lies in main memory, whatever backend there is for devices."""
    return dist.new_group(backend="gloo", timeout=PATIENCE)


def _group(tensor: Tensor) -> Any:
    return _of_cpu() if tensor.device.type == "cpu" else None


_step = {"together": False}
_devices = {"sharing": 1}


def _own_device() -> tuple[str, str]:
    """The machine and the CUDA device of this process, whatever each process calls it."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return HOST, str(getattr(properties, "uuid", torch.cuda.current_device()))


def sharing() -> int:
    """Processes of ``torchrun`` that have this one's CUDA device, itself included."""
    return _devices["sharing"]


def go_in_step() -> None:
    """From now on every forward pass needs all processes, for each holds a part of the weights."""
    _step["together"] = True


def own_batches(
    batches: Iterable[Any], done: int = 0, *, wanted: Callable[[Any], bool] = lambda batch: True
) -> Iterator[tuple[int, Any, bool]]:
    """(number, batch, True) of every n-th batch of all, n processes, after the first ``done`` of them.

    Where all go in step, who has no more goes along with a batch that is not its own: (−1, batch, False).
    """
    first = done * processes() + rank()
    numbered = zip(count(first, processes()), islice(batches_after(batches, first), 0, None, processes()), strict=False)
    own = ((number, batch, True) for number, batch in numbered if wanted(batch))
    return _in_step(own, batches) if _step["together"] else own


def _in_step(own: Iterator[tuple[int, Any, bool]], batches: Iterable[Any]) -> Iterator[tuple[int, Any, bool]]:
    spare = None
    while any(gathered((mine := next(own, None)) is not None)):
        if mine is None and spare is None:
            spare = next(iter(batches))
        yield (-1, spare, False) if mine is None else mine


def own_count(count: int | None) -> int | None:
    """About how many of so many sequences are this process's own."""
    return None if count is None else -(-count // processes())


def total(values: Sequence[float]) -> list[float]:
    """Their sums over all processes."""
    if not active():
        return list(values)
    sums = torch.tensor(list(values), dtype=torch.float64)
    with _together():
        dist.all_reduce(sums, group=_of_cpu())
    return sums.tolist()


def add_up(tensor: Tensor, owner: int) -> None:
    """Sums a tensor over all processes, in place, for one of them; to the others it is of no more use."""
    if active():
        with _together():
            dist.reduce(tensor, owner, group=_group(tensor))


def wait() -> None:
    """Until all processes are here."""
    if active():
        gathered(None)


def gathered(value: T) -> list[T]:
    """That of every process, in order of their numbers."""
    if not active():
        return [value]
    found: list[Any] = [None] * processes()
    with _together():
        dist.all_gather_object(found, value, group=_of_cpu())
    return found


def same(make: Callable[[], T]) -> T:
    """What the first process makes, for all; its tensors are sent one at a time."""
    if not active():
        return make()
    if leads():
        value = make()
        tensors: list[Tensor] = []
        head = _Pickler.of(value, tensors)
        _sent([head, [(tensor.shape, tensor.dtype, tensor.device.type) for tensor in tensors]])
        for tensor in tensors:
            _send(tensor.contiguous())
        return value
    head, shapes = _sent([None, None])
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else CPU
    received = []
    for shape, dtype, kind in shapes:
        received.append(torch.empty(shape, dtype=dtype, device=device if kind == "cuda" else CPU))
        _send(received[-1])
    return _Unpickler.to_value(head, received)


def computed(make: Callable[[], T]) -> T:
    """The same of what takes forward passes: in step, all make it."""
    return make() if _step["together"] else same(make)


def _sent(values: list[Any]) -> list[Any]:
    with _together():
        dist.broadcast_object_list(values, 0, group=_of_cpu())
    return values


def _send(tensor: Tensor) -> None:
    with _together():
        dist.broadcast(tensor, 0, group=_group(tensor))


class _Pickler(pickle.Pickler):
    """Leaves tensors out, by their number."""

    def __init__(self, file: io.BytesIO, tensors: list[Tensor]) -> None:
        super().__init__(file)
        self._tensors = tensors

    def persistent_id(self, value: Any) -> int | None:
        if not isinstance(value, Tensor):
            return None
        self._tensors.append(value)
        return len(self._tensors) - 1

    @classmethod
    def of(cls, value: Any, tensors: list[Tensor]) -> bytes:
        file = io.BytesIO()
        cls(file, tensors).dump(value)
        return file.getvalue()


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, tensors: Sequence[Tensor]) -> None:
        super().__init__(file)
        self._tensors = tensors

    def persistent_load(self, number: int) -> Tensor:
        return self._tensors[number]

    @classmethod
    def to_value(cls, head: bytes, tensors: Sequence[Tensor]) -> Any:
        return cls(io.BytesIO(head), tensors).load()


@contextmanager
def _together() -> Iterator[None]:
    """Around what needs all processes."""
    try:
        yield
    except RuntimeError as error:  # a closed connection, by whatever backend
        raise PeerError(ENDED) from error
