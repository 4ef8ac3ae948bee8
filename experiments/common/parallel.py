"""Work that falls into independent parts, done by several processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

import torch
from tqdm import tqdm

Item, Result = TypeVar("Item"), TypeVar("Result")


def spread(function: Callable[[Item], Result], work: Sequence[Item], processes: int, title: str) -> list[Result]:
    """[function(item) for item in work], with a thread for each process.

    The networks are so small that threads within one product wait for each other more than they work.
    """
    if processes == 1:
        return [function(item) for item in tqdm(work, desc=title, disable=None)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(tqdm(pool.map(function, work), desc=title, total=len(work), disable=None))
