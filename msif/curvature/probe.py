"""How fast a model and a device are: one small batch, products of small matrices, and nothing larger."""

from __future__ import annotations

import math
import mmap
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from msif.curvature.activations import Activations
from msif.curvature.inputs import device_and_dtype, find_input_groups
from msif.curvature.residency import OUTPUT_BYTES
from msif.curvature.work import Work
from msif.data.sample import Plan
from msif.models.blocks import TrackedModule
from msif.models.capture import Capture, Cotangent
from msif.models.objectives import Objective
from msif.models.tensor_cores import products_of

# of the small batch: most tokens, most elements of its outputs, its share of a pass, seconds that it may take
TOKENS, OUTPUTS, SHARE, SECONDS = 256, 2**23, 0.01, 4.0
GPU_SHARE = 16  # as many times as that of a GPU, which is idle with few
FEW = 8  # tokens of the first runs, which warm up and tell how many more there may be
# a token of the small batch takes no less than one part in so many of its time, whatever a call takes by itself
LEAST = 8
# what seconds of an eigendecomposition of a d × d matrix go with; a GPU waits for each of d steps (an H200: 11 ms at
# d = 1,024, 90 at 4,096, 495 at 8,192)
EIGEN: dict[str, Callable[[int], float]] = {
    "cpu": lambda d: d**2 * (d + 200.0),
    "cuda": lambda d: d * (d**2 + 3500.0**2),
}


@dataclass(frozen=True)
class Line:
    """Seconds of a call, whatever its size, and of each token in it."""

    call: float
    token: float

    def seconds(self, plan: Plan) -> float:
        return plan.batches * self.call + plan.tokens * self.token


@dataclass(frozen=True)
class Speed:
    """What was measured, in seconds.

    Attributes:
        groups: module name -> the first module that reads the same input.
        outputs: elements of the model's outputs for a token.
        step: the model's forward pass of a few tokens.
        forward, backward: of the model, up to its outputs and down from them.
        cotangents: from the outputs to the gradient with respect to them, by name.
        multiply_add, element, double, page: of ``Work``.
        eigen: of an eigendecomposition, by ``EIGEN`` of its device.
        device: "cpu", or another type of device.
        activations: bytes that a forward pass leaves for the backward one, for a token, and for each pair of tokens of
            a document, of attention that is written out.
    """

    groups: Mapping[str, str]
    outputs: float
    step: float
    forward: Line
    backward: Line
    cotangents: Mapping[str, Line]
    multiply_add: float
    element: float
    double: float
    page: float
    eigen: float
    device: str
    activations: tuple[float, float] = (0.0, 0.0)

    def held(self, shapes: Iterable[tuple[int, int]]) -> tuple[float, float]:
        """Bytes of a batch's outputs (``OUTPUT_BYTES`` each), and of its activations.

        Args:
            shapes: documents and positions of batches, of which the one that holds most counts.
        """
        a, b = self.activations
        each = ((OUTPUT_BYTES * self.outputs * B * T, a * B * T + b * B * T**2) for B, T in shapes)
        return max(each, key=sum)

    def of(self, work: Work) -> float:
        products = work.multiply_adds * self.multiply_add + work.double * self.double
        return products + work.elements * self.element + work.paged * self.page

    def over(self, plan: Plan, work: Callable[[int, int], Work]) -> float:
        """Of a pass over a plan, ``work`` being that of a batch of so many documents and positions."""
        return plan.times * sum(count * self.of(work(*shape)) for shape, count in plan.shapes.items())

    def passes(self, plan: Plan, cotangent: str, draws: int = 1) -> float:
        """The model's own part of a pass: forward once, and backward for each draw."""
        down = self.cotangents[cotangent].seconds(plan) + self.backward.seconds(plan)
        return self.forward.seconds(plan) + draws * down

    def eigenvectors(self, sizes: Iterable[tuple[int, int]]) -> float:
        """Of eigendecompositions: (dimension, how many)."""
        return self.eigen * sum(count * _eigen_size(self.device, d) for d, count in sizes)


def measure(
    model: nn.Module,
    tracked: Sequence[TrackedModule],
    objective: Objective,
    plan: Plan,
    cotangents: Mapping[str, Cotangent],
) -> Speed:
    """Runs a few tokens of the plan's documents, and then one small batch of them.

    Raises:
        MsifError: what ``Capture`` refuses.
    """
    device, dtype = device_and_dtype(model)
    few = plan.small_batch(FEW, 1).to(device)
    found = find_input_groups(model, tracked, objective, few)
    groups = {module.name: found.get(module.name, module.name) for module in tracked}
    activations = Activations(model)
    with Capture(model, tracked, activations) as capture:
        timer = _Timer(capture, objective, cotangents, device, activations)
        _, first = timer.count(few)  # weights come into memory with the first run
        counted = [first]
        small = timer.run(few)
        affordable = FEW * SECONDS / sum(small)
        larger = GPU_SHARE if device.type == "cuda" else 1
        tokens = int(min(larger * min(TOKENS, OUTPUTS / timer.outputs, SHARE * plan.tokens), affordable))
        lines = [Line(0.0, seconds / few.input_ids.numel()) for seconds in small]
        if tokens >= 2 * FEW:
            batch = plan.small_batch(tokens).to(device)
            seconds, more = timer.count(batch)
            counted.append(more)
            # the better of two: whatever else a machine does can double one
            best = map(min, seconds, timer.run(batch))
            pairs = zip(small, best, strict=True)
            lines = [_line(few.input_ids.numel(), a, batch.input_ids.numel(), b) for a, b in pairs]
        held = _per_token_and_pair(counted)
    width = max(max(module.shape) for module in tracked)
    with products_of(model)():
        multiply_add = _product(device, dtype, width)
    double = torch.device("cpu") if device.type == "mps" else device  # which has no float64
    if device.type == "cuda":
        # the small batch may leave it idle, and would then take no longer if it were larger
        maps = [module for module in tracked for use in module.uses if use.kind == "linear"]
        weights, kind = sum(module.d_in * module.d_out for module in maps), next(model.parameters()).dtype
        least = weights * _product(device, kind, width)
        lines[:2] = [Line(line.call, max(line.token, least)) for line in lines[:2]]
    return Speed(
        groups=groups,
        outputs=timer.outputs,
        step=small[0],
        forward=lines[0],
        backward=lines[1],
        cotangents=dict(zip(cotangents, lines[2:], strict=True)),
        multiply_add=multiply_add,
        element=_element(device, dtype, min(2**20, int(timer.outputs * few.input_ids.numel()))),
        double=_product(double, torch.float64, width),
        page=_page() if device.type == "cpu" else 0.0,
        eigen=_eigen(double, width),
        device=double.type,
        activations=held,
    )


def _per_token_and_pair(counted: Sequence[tuple[int, int, int]]) -> tuple[float, float]:
    """(a, b) of a·BT + b·BT² bytes, from the bytes of one batch, or of two of other lengths: (B, T, bytes)."""
    (short, few), (long, many) = ((T, size / (B * T)) for B, T, size in (counted[0], counted[-1]))
    b = max(0.0, (many - few) / (long - short)) if long > short else 0.0
    return max(0.0, many - b * long), b


def _line(few: int, short: float, many: int, long: float) -> Line:
    """The line through two runs."""
    token = max((long - short) / (many - few), long / many / LEAST)
    return Line(max(0.0, long - many * token), token)


class _Timer:
    """Times the parts of a pass: forward, backward, and the step between them for each cotangent."""

    def __init__(
        self,
        capture: Capture,
        objective: Objective,
        cotangents: Mapping[str, Cotangent],
        device: torch.device,
        activations: Activations,
    ) -> None:
        self.capture, self.objective, self.cotangents, self.device = capture, objective, cotangents, device
        self.activations = activations
        self.outputs = 1.0

    def count(self, batch: Any) -> tuple[list[float], tuple[int, int, int]]:
        """The seconds of a run, and (B, T, bytes) of the batch's activations."""
        with self.activations.counting():
            seconds = self.run(batch)
        B, T = self.objective.live(batch).shape
        return seconds, (B, T, self.activations.bytes)

    def run(self, batch: Any) -> list[float]:
        """Seconds of the forward pass, of the backward pass, and of each cotangent."""
        ticks = [self._now()]

        def all_of_them(outputs: Tensor, batch: Any) -> Tensor:
            self.activations.end_of_forward()
            ticks.append(self._now())
            for cotangent in self.cotangents.values():
                gradient = cotangent(outputs, batch)
                ticks.append(self._now())
            return gradient

        outputs = self.capture.run(self.objective, batch, [all_of_them])
        ticks.append(self._now())
        self.outputs = outputs.numel() / self.objective.live(batch).numel()
        forward, *between, backward = (after - before for before, after in pairwise(ticks))
        return [forward, backward, *between]

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def _best(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of some runs."""
    found = []
    for _ in range(5):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - start)
    return min(found)


def _side(width: int, most: int) -> int:
    """Of a matrix to measure with: well below the model's own."""
    return max(16, min(most, 3 * width // 16))


def _product(device: torch.device, dtype: torch.dtype, width: int) -> float:
    """Seconds of a multiply-add."""
    side = _side(width, 2048 if device.type == "cuda" else 512)
    matrix = torch.rand(side, side, device=device, dtype=dtype)
    return _best(lambda: matrix @ matrix, device) / side**3


def _element(device: torch.device, dtype: torch.dtype, count: int) -> float:
    values = torch.rand(count, device=device, dtype=dtype)
    return _best(lambda: values + 1, device) / count


def _page() -> float:
    """Seconds of a float32 number in memory that comes from the system."""
    best = math.inf
    for _ in range(3):
        with mmap.mmap(-1, 1000 * mmap.PAGESIZE) as memory:
            start = time.perf_counter()
            for place in range(0, len(memory), mmap.PAGESIZE):
                memory[place] = 1
            best = min(best, (time.perf_counter() - start) / (len(memory) / 4))
    return best


def _eigen_size(device: str, d: int) -> float:
    return EIGEN.get(device, EIGEN["cpu"])(d)


def _eigen(device: torch.device, width: int) -> float:
    side = _side(width, 256)
    matrix = torch.rand(side, side, device=device, dtype=torch.float64)
    return _best(lambda: torch.linalg.eigh(matrix), device) / _eigen_size(device.type, side)
