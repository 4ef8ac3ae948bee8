"""Hooks that hand each tracked module's input x and output gradient g to a consumer, with the model left as it was.

``∇L = Σ_t g_t x̄_tᵀ`` is all that the toolkit ever needs of a backward pass, so parameters stay frozen, no ``.grad`` is
built, and gradients stop at the first tracked module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from msif.errors import MsifError
from msif.models.blocks import TrackedModule, input_of
from msif.models.objectives import Objective

# float16 gradients of a summed loss underflow below 6e-8: they are carried at this multiple
HALF_GRADIENT_SCALE = 256.0

Cotangent = Callable[[Tensor, Any], Tensor]
"""(outputs, batch) -> gradient of a scalar with respect to the outputs."""


class Consumer(Protocol):
    """What a pass does with inputs and gradients. B sequences, T positions."""

    def begin(self, batch: Any, objective: Objective) -> None:
        """Called before a batch's forward pass."""

    def forward(self, module: TrackedModule, x: Tensor) -> Any:
        """x: (B, T, d_in). Returns what ``backward`` will need, or None."""

    def backward(self, module: TrackedModule, saved: Any, g: Tensor) -> None:
        """g: (B, T, d_out), in forward order reversed; once for each cotangent."""

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
    narrow = [(p, p.data) for p in model.parameters() if p.dtype in (torch.bfloat16, torch.float16)]
    try:
        for parameter, data in narrow:
            parameter.data = data.float()
        yield
    finally:
        for parameter, data in narrow:
            parameter.data = data


class Capture:
    """A context in which ``run`` sends batches through the model and their x and g through the consumer.

    Raises:
        MsifError: a tracked module that runs twice in a pass, gradient checkpointing, an input that was changed in
            place, rows that are not one a position, or an output that holds NaN or infinity.
    """

    def __init__(self, model: nn.Module, tracked: Sequence[TrackedModule], consumer: Consumer) -> None:
        self.model = model
        self.tracked = tracked
        self.consumer = consumer
        self._saved: dict[str, tuple[Any, int | None]] = {}
        self._sizes: tuple[int, int] = (0, 0)
        self._phase = "idle"
        self._batch: Any = None
        self._keep = False
        half = any(parameter.dtype == torch.float16 for parameter in model.parameters())
        self._scale = HALF_GRADIENT_SCALE if half else 1.0

    def __enter__(self) -> Capture:
        with ExitStack() as stack:
            stack.enter_context(frozen(self.model))
            for module in self.tracked:
                hook = self._forward_hook(module)
                handle = self.model.get_submodule(module.path).register_forward_hook(hook, with_kwargs=True)
                stack.callback(handle.remove)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._saved.clear()
        self._stack.close()

    def run(self, objective: Objective, batch: Any, cotangents: Sequence[Cotangent]) -> Tensor:
        """One forward pass and a backward pass for each cotangent; returns the outputs, detached."""
        self.consumer.begin(batch, objective)
        self._saved.clear()
        live = objective.live(batch)
        self._sizes = (live.shape[0], live.shape[1])
        with torch.enable_grad():
            self._phase = "forward"
            outputs = objective.outputs(self.model, batch)
            self._phase = "between"
            if not outputs.requires_grad:
                raise MsifError("the model's outputs depend on no tracked module: choose other --modules.")
            if not _all_finite(outputs.detach()):
                self._name_what_is_not_finite(objective, batch)
            for number, cotangent in enumerate(cotangents, start=1):
                self._keep = number < len(cotangents)
                gradient = cotangent(outputs, batch)
                if self._scale != 1.0:
                    gradient = gradient * self._scale
                self._phase = "backward"
                outputs.backward(gradient, retain_graph=self._keep)
                self._phase = "between"
        self._phase = "idle"
        self._saved.clear()
        self.consumer.end(batch)
        return outputs.detach()

    def _forward_hook(self, module: TrackedModule) -> Callable[..., Tensor]:
        def hook(inner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
            if self._phase == "diagnosis":
                if not _all_finite(output):
                    raise MsifError(_not_finite(f"the output of module '{module.name}'", self._batch))
                return output
            if self._phase != "forward" or not torch.is_grad_enabled():
                raise MsifError(
                    f"module '{module.name}' is recomputed during the backward pass: "
                    "switch gradient checkpointing off (model.gradient_checkpointing_disable())."
                )
            if module.name in self._saved:
                raise MsifError(
                    f"module '{module.name}' runs more than once in a forward pass, which is not supported: "
                    "leave it out with --modules."
                )
            x = input_of(inner, args, kwargs)
            saved = self.consumer.forward(module, self._per_sequence(module, x.detach()))
            # a detached view counts the changes of its base: what is kept must be what was read
            self._saved[module.name] = (saved, _version(saved))
            if not output.requires_grad:
                # the first maps of the model: gradients start here. A copy, for an in-place activation may follow
                output = output.detach().requires_grad_().clone()

            def on_gradient(g: Tensor) -> None:
                if self._phase != "backward":  # a cotangent is made by a backward pass of its own
                    return
                saved, version = self._saved[module.name]
                if _version(saved) != version:
                    raise MsifError(
                        f"the input of module '{module.name}' is changed in place after the module read it: "
                        "use an out-of-place operation there, or leave the module out with --modules."
                    )
                if not self._keep:
                    self._saved[module.name] = (None, None)
                g = self._per_sequence(module, g)
                self.consumer.backward(module, saved, g.float() / self._scale if self._scale != 1.0 else g)

            output.register_hook(on_gradient)
            return output

        return hook

    def _name_what_is_not_finite(self, objective: Objective, batch: Any) -> None:
        """Runs the batch again to find the first module whose output is not finite, and raises."""
        self._phase, self._batch = "diagnosis", batch
        with torch.no_grad():
            objective.outputs(self.model, batch)
        raise MsifError(_not_finite("the model's output", batch))

    def _per_sequence(self, module: TrackedModule, values: Tensor) -> Tensor:
        """(B, T, d) from (B, T, d), (1, B·T, d), (B·T, d), or (B, d) where T = 1."""
        sequences, positions = self._sizes
        rows = tuple(values.shape[:-1])
        if rows not in ((sequences, positions), (1, sequences * positions), (sequences * positions,)):
            raise MsifError(
                f"module '{module.name}' reads {rows} rows where the batch has {sequences} "
                f"sequences of {positions} positions, in this order (a routed expert?): leave it out with --modules."
            )
        return values.reshape(sequences, positions, values.shape[-1])


def _version(saved: Any) -> int | None:
    return saved._version if isinstance(saved, Tensor) else None


def _all_finite(values: Tensor) -> bool:
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
