"""Hooks that hand both sides of each parameter's gradient to a consumer, with the model left as it was.

``∇L = Σ_t left_t ⊗ right_t`` over all uses is all that the toolkit ever needs of a backward pass, so parameters stay
frozen, no ``.grad`` is built, and gradients stop at the first tracked module.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from msif.errors import MsifError
from msif.models.blocks import TrackedModule, Use
from msif.models.objectives import Objective
from msif.models.outer import Outer
from msif.models.tensor_cores import products_of
from msif.models.uses import Reading, read

# float16 gradients of a summed loss underflow below 6e-8: they are carried at this multiple
HALF_GRADIENT_SCALE = 256.0

Cotangent = Callable[[Tensor, Any], Tensor]
"""(outputs, batch) -> gradient of a scalar with respect to the outputs."""


class Consumer:
    """What a pass does with both sides of gradients; of this base class, nothing. B sequences, T positions."""

    def begin(self, batch: Any, objective: Objective) -> None:
        """Called before a batch's forward pass."""

    def right(self, module: TrackedModule, right: Tensor) -> Any:
        """One use's right side, (B, T, d_in), once it is known. Returns what ``backward`` will need of it.

        A linear map's is its input, known in the forward pass and kept for all cotangents; those of other uses hold g.
        """
        return right

    def backward(self, module: TrackedModule, uses: Sequence[Outer]) -> None:
        """All uses of a parameter, in forward order reversed; once for each cotangent."""

    def end(self, batch: Any) -> None:
        """Called after a batch's last backward pass."""


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no parameter gradients inside; every flag back as it was after, also after an exception."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for module, mode in modes:
            module.training = mode


@contextmanager
def widened(model: nn.Module) -> Iterator[None]:
    """Parameters of 16 bits as float32 inside, of the same values; the very same tensors as before after."""
    narrow = [(p, p.data, p.grad) for p in model.parameters() if p.dtype in (torch.bfloat16, torch.float16)]
    try:
        for parameter, data, _ in narrow:
            parameter.grad = None  # one of 16 bits could not be given back to a parameter of 32
            parameter.data = data.float()
        yield
    finally:
        for parameter, data, gradient in narrow:
            parameter.data = data
            parameter.grad = gradient


@dataclass
class _Run:
    """One use in the forward pass under way."""

    reading: Reading
    saved: Any
    version: int | None


class Capture:
    """A context in which ``run`` sends batches through the model and both sides of gradients through the consumer.

    Attributes:
        ran: names of the parameters that the last forward pass used.
        scale: the multiple at which gradients were carried in the last backward pass.

    Raises:
        MsifError: gradient checkpointing, an input that was changed in place, rows that are not one a position, or an
            output that holds NaN or infinity.
    """

    def __init__(self, model: nn.Module, tracked: Sequence[TrackedModule], consumer: Consumer) -> None:
        self.model = model
        self.tracked = tracked
        self.consumer = consumer
        self._places: dict[str, list[tuple[TrackedModule, Use]]] = {}
        for module in tracked:
            for use in module.uses:
                self._places.setdefault(use.path, []).append((module, use))
        self._runs: dict[str, int] = {}
        self._arrived: dict[str, list[Outer]] = {}
        self._sizes: tuple[int, int] = (0, 0)
        self._phase = "idle"
        self._batch: Any = None
        self._keep = False
        self._half = any(parameter.dtype == torch.float16 for parameter in model.parameters())
        self.scale = 1.0
        self._products = products_of(model)

    @property
    def running(self) -> bool:
        """Whether the model runs for this capture, and not for another one within."""
        return self._phase != "idle"

    @property
    def ran(self) -> set[str]:
        return set(self._runs)

    def __enter__(self) -> Capture:
        with ExitStack() as stack:
            stack.enter_context(frozen(self.model))
            for path, members in self._places.items():
                hook = self._forward_hook(members)
                handle = self.model.get_submodule(path).register_forward_hook(hook, with_kwargs=True)
                stack.callback(handle.remove)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._arrived.clear()
        self._stack.close()

    def run(self, objective: Objective, batch: Any, cotangents: Sequence[Cotangent]) -> Tensor:
        """One forward pass and a backward pass for each cotangent; returns the outputs, detached."""
        self.consumer.begin(batch, objective)
        self._runs.clear()
        live = objective.live(batch)
        self._sizes = (live.shape[0], live.shape[1])
        with torch.enable_grad():
            self._phase = "forward"
            outputs = objective.outputs(self.model, batch)
            self._phase = "between"
            if not outputs.requires_grad:
                raise MsifError("the model's outputs depend on no tracked module: choose other --modules.")
            self._look_at(outputs.detach(), objective, batch)
            for number, cotangent in enumerate(cotangents, start=1):
                self._keep = number < len(cotangents)
                gradient = cotangent(outputs, batch)
                if self._half:
                    self.scale = _half_scale(gradient)
                    gradient = gradient * self.scale
                self._phase = "backward"
                outputs.backward(gradient, retain_graph=self._keep)
                self._phase = "between"
                self._hand_over_the_rest()
        self._phase = "idle"
        self.consumer.end(batch)
        return outputs.detach()

    def accompany(self, objective: Objective, batch: Any, cotangents: Sequence[Cotangent]) -> None:
        """The passes alone, which other processes need; nothing goes to the consumer."""
        consumer, self.consumer = self.consumer, Consumer()
        try:
            self.run(objective, batch, cotangents)
        finally:
            self.consumer = consumer

    def _forward_hook(self, members: Sequence[tuple[TrackedModule, Use]]) -> Callable[..., Tensor]:
        name = members[0][0].name

        def hook(inner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
            if self._phase == "idle":
                return output  # a pass of another capture
            if self._phase == "diagnosis":
                if not _all_finite(output):
                    raise MsifError(_not_finite(f"the output of module '{name}'", self._batch))
                return output
            if self._phase == "forward" and not torch.is_grad_enabled():
                return output  # no gradient comes back from here
            if self._phase != "forward":
                raise MsifError(
                    f"module '{name}' is recomputed during the backward pass: "
                    "switch gradient checkpointing off (model.gradient_checkpointing_disable())."
                )
            runs = []
            for module, use in members:
                reading = read(module, use, inner, args, kwargs, output, self._sizes)
                saved = None if reading.right is None else self._right(module, reading.right)
                # a detached view counts the changes of its base: what is kept must be what was read
                runs.append((module, _Run(reading, saved, _version(saved))))
                self._runs[module.name] = self._runs.get(module.name, 0) + 1
            if members[0][1].kind == "lookup":
                output = _for_each_sequence(output, self._sizes)
            if not output.requires_grad:
                # the first modules of the model: gradients start here. A copy, for an in-place activation may follow
                output = output.detach().requires_grad_().clone()

            output, whole = _with_lasting_hooks(output)
            shape = output.shape

            def on_gradient(g: Tensor) -> None:
                if self._phase != "backward":  # a cotangent is made by a backward pass of its own
                    return
                if self.scale != 1.0:
                    g = g.float() / self.scale
                for module, run in runs:
                    self._arrive(module, run, g.reshape(shape))

            whole.register_hook(on_gradient)
            return output

        return hook

    def _arrive(self, module: TrackedModule, run: _Run, g: Tensor) -> None:
        """Takes in a use's gradient; the last one of a parameter hands all of them over."""
        if _version(run.saved) != run.version:
            raise MsifError(
                f"the input of module '{module.name}' is changed in place after the module read it: "
                "use an out-of-place operation there, or leave the module out with --modules."
            )
        if run.reading.right is None:
            right = self._right(module, run.reading.right_of(g))
        else:
            right = run.saved
            if not self._keep:
                run.saved, run.version = None, None
        arrived = self._arrived.setdefault(module.name, [])
        arrived.append(Outer(run.reading.left_of(g), right, module.bias))
        if len(arrived) == self._runs[module.name]:
            self._hand_over(module)

    def _hand_over_the_rest(self) -> None:
        """Parameters of which a use takes no part in the outputs."""
        for module in self.tracked:
            if module.name in self._arrived:
                self._hand_over(module)

    def _right(self, module: TrackedModule, right: Tensor) -> Any:
        with self._products():
            return self.consumer.right(module, right)

    def _hand_over(self, module: TrackedModule) -> None:
        with self._products():
            self.consumer.backward(module, self._arrived.pop(module.name))

    def _look_at(self, outputs: Tensor, objective: Objective, batch: Any) -> None:
        """Where outputs are not finite, runs the batch again to find the first module whose are not, and raises."""
        if _all_finite(outputs):
            return
        self._phase, self._batch = "diagnosis", batch
        with torch.no_grad():
            objective.outputs(self.model, batch)
        raise MsifError(_not_finite("the model's output", batch))


def _half_scale(gradient: Tensor) -> float:
    """At what multiple a float16 backward pass is carried that starts with this.

    Gradients of cross-entropy are 1 at most; those of other losses are brought there first, by a power of two, for
    float16 ends at 65504.
    """
    largest = 0.0 if gradient.is_meta else float(gradient.abs().amax())
    if not 1 < largest < math.inf:
        return HALF_GRADIENT_SCALE
    return HALF_GRADIENT_SCALE / 2 ** math.ceil(math.log2(largest))


def _for_each_sequence(output: Tensor, size: tuple[int, int]) -> Tensor:
    """A table's rows that all sequences share, such as those of positions, as rows of each: gradients come apart."""
    lead = tuple(output.shape[:-1])
    if lead in ((1, size[1]), (size[1],)) and size[0] > 1:
        return output.expand(*size, output.shape[-1])
    return output


def _with_lasting_hooks(output: Tensor) -> tuple[Tensor, Tensor]:
    """An output, and the tensor of the same numbers whose hooks stay when the output is changed in place later.

    Those of a view do not, and a map with a bias returns a view of all of its base.
    """
    base = output._base
    if base is None:
        return output, output
    if base.requires_grad and base.numel() == output.numel() and base.is_contiguous() and output.is_contiguous():
        return output, base
    output = output.clone()
    return output, output


def _version(saved: Any) -> int | None:
    return saved._version if isinstance(saved, Tensor) else None


def _all_finite(values: Tensor) -> bool:
    if values.is_meta:
        return True
    wide = values.dtype if values.dtype == torch.float64 else torch.float32
    # one reduction in the good case; a sum of large finite values may overflow, so a bad one is looked at closely
    return bool(torch.isfinite(values.sum(dtype=wide))) or bool(torch.isfinite(values).all())


def _not_finite(what: str, batch: Any) -> str:
    return (
        f"{what} holds NaN or infinity in {describe_batch(batch)}: check that document and the weights, "
        "or use --dtype float32 (bfloat16 instead of float16)."
    )


def describe_batch(batch: Any) -> str:
    """Names a batch by its documents, for error messages."""
    rows = batch.indices.tolist()
    return f"the batch of rows {rows[0]}–{rows[-1]}" if len(rows) > 1 else f"the batch of row {rows[0]}"


class FiniteGuard:
    """Collects one scalar a module and batch, and looks at them once a batch, so that a GPU is not waited for."""

    def __init__(self, what: str) -> None:
        self.what = what
        self._names: list[str] = []
        self._values: list[Tensor] = []

    def watch(self, name: str, value: Tensor) -> None:
        """value: any scalar that is not finite where the watched tensor is not."""
        self._names.append(name)
        self._values.append(value)

    def check(self, batch: Any) -> None:
        """Raises MsifError naming the first module whose value is NaN or infinite, and the batch."""
        if not self._values:
            return
        good = torch.isfinite(torch.stack(self._values)).tolist()
        names, self._names, self._values = self._names, [], []
        if not all(good):
            raise MsifError(_not_finite(f"{self.what} of module '{names[good.index(False)]}'", batch))
