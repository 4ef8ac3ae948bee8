"""Tiny models, documents and dense answers that the tests share."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, GPTNeoXForSequenceClassification

from msif.data.documents import Batch, Document, collate
from msif.models.blocks import Block, TrackedModule, is_linear, linear_shape
from msif.models.objectives import Categorical, Objective
from msif.models.select import track_modules

VOCABULARY = 11


def neox_config(**changes) -> GPTNeoXConfig:
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 12,
        "max_position_embeddings": 64,
        "rotary_pct": 0.5,
        "pad_token_id": 0,
        "hidden_dropout": 0.1,
        "attention_dropout": 0.1,
    }
    return GPTNeoXConfig(**{**settings, **changes})


def tiny_lm(seed: int = 0, dtype: torch.dtype = torch.float64, **changes) -> nn.Module:
    torch.manual_seed(seed)
    return spread(GPTNeoXForCausalLM(neox_config(**changes))).to(dtype)


def tiny_classifier(seed: int = 0, dtype: torch.dtype = torch.float64, **changes) -> nn.Module:
    torch.manual_seed(seed)
    return spread(GPTNeoXForSequenceClassification(neox_config(**{"num_labels": 3, **changes}))).to(dtype)


def spread(model: nn.Module) -> nn.Module:
    """Larger random weights and biases than an initialisation has, so that no quantity is negligible."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def documents(
    lengths: Sequence[int], seed: int = 0, prompt: int = 0, labels: bool = False, first_index: int = 0
) -> list[Document]:
    generator = np.random.default_rng(seed)
    result = []
    for number, length in enumerate(lengths):
        ids = generator.integers(1, VOCABULARY, length).astype(np.int32)
        supervised = np.arange(length) >= max(prompt, 1)
        label = int(generator.integers(0, 3)) if labels else None
        result.append(Document(first_index + number, ids, supervised & (not labels), label))
    return result


def labelled(lengths: Sequence[int], labels: Sequence[Sequence[float]], seed: int = 0) -> list[Document]:
    """Documents with a number for each output of a head."""
    return [
        replace(document, label=tuple(map(float, label)))
        for document, label in zip(documents(lengths, seed, labels=True), labels, strict=True)
    ]


def alone(batch_documents: list[Document]) -> list[Batch]:
    """Each document as a batch of its own."""
    return [collate([document]) for document in batch_documents]


class MLP(nn.Module):
    """A plain classifier; in-place activations, as users write them."""

    def __init__(self, sizes: Sequence[int], bias: bool = True) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(d_in, d_out, bias=bias) for d_in, d_out in itertools.pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = nn.functional.relu(layer(x), inplace=True)
        return self.layers[-1](x)


class DeepLinear(MLP):
    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


@dataclass(frozen=True)
class Examples:
    """A batch of vectors with class labels or real targets."""

    indices: Tensor
    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.indices)

    def to(self, device) -> Examples:
        return self


def examples(x: Tensor, y: Tensor, size: int | None = None) -> list[Examples]:
    size = size or len(x)
    rows = torch.arange(len(x))
    return [Examples(rows[i : i + size], x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]


class Classify(Categorical):
    def outputs(self, model, batch):
        return model(batch.x)

    def targets(self, batch):
        return batch.y

    def predicting(self, batch):
        return torch.ones(len(batch), dtype=torch.bool)


class SquaredError(Objective):
    """½‖y − f(x)‖², the negative log likelihood of a unit Gaussian."""

    def outputs(self, model, batch):
        return model(batch.x)

    def losses(self, outputs, batch, targets=None):
        return 0.5 * (outputs - (batch.y if targets is None else targets)).square().sum(1)

    def sample(self, outputs, batch, generators):
        noise = np.stack([generator.standard_normal(outputs.shape[1]) for generator in generators])
        return outputs + torch.from_numpy(noise).to(outputs.dtype)

    def supervised_counts(self, batch):
        return torch.ones(len(batch), dtype=torch.long)


def track_plain(model: nn.Module) -> list[TrackedModule]:
    tracked = []
    for name, module in model.named_modules():
        if is_linear(module):
            d_out, d_in = linear_shape(module)
            tracked.append(TrackedModule(name, name, d_in, d_out, module.bias is not None, (Block(0, d_out),)))
    return tracked


def dense_gradients(model: nn.Module, tracked: Sequence[TrackedModule], loss: Tensor) -> dict[str, Tensor]:
    """[∂L/∂W ∂L/∂b] of each tracked parameter by autograd's own gradients, all its uses together."""
    result = {}
    parameters = [p for module in tracked for p in _parameters(model, module)]
    gradients = iter(torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True))
    for module in tracked:
        parts = [next(gradients) for _ in _parameters(model, module)]
        transposed = type(model.get_submodule(module.path)).__name__ == "Conv1D"
        weight = parts[0].T if transposed else parts[0].reshape(module.d_out, module.d_in)
        result[module.name] = torch.cat([weight, parts[1][:, None]], 1) if module.bias else weight
    return result


def dense_hop(V, H, A, B, scale, gradient, alpha, bilinear=True):
    """V − H J (Jᵀ H J + S + αI)⁻¹ Jᵀ V for V (Q, d_out, d), with J and S of autograd; α of A and of B."""
    columns = V.shape[2] - A.shape[1]

    def added(phi):
        first, second = phi[: A.numel()].view_as(A), phi[A.numel() :].view_as(B)
        return nn.functional.pad(scale * second @ first, (0, columns)).flatten()

    phi = torch.cat([A.flatten(), B.flatten()])
    J = torch.autograd.functional.jacobian(added, phi)
    S = torch.autograd.functional.hessian(lambda phi: added(phi) @ gradient.flatten(), phi)
    pull = torch.cat(
        [torch.full((part.numel(),), one, dtype=phi.dtype) for part, one in zip((A, B), alpha, strict=True)]
    )
    system, flat = J.T @ H @ J + bilinear * S + torch.diag(pull), V.flatten(1).T
    return (flat - H @ J @ torch.linalg.solve(system, J.T @ flat)).T.reshape(V.shape)


def _parameters(model: nn.Module, module: TrackedModule) -> list[nn.Parameter]:
    inner = model.get_submodule(module.path)
    return [getattr(inner, module.uses[0].key)] + ([inner.bias] if module.bias else [])


class Products(TorchDispatchMode):
    """Multiply-adds of matrix products."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__.rstrip("_")
        if name in ("mm", "bmm"):
            self.count += args[0].numel() * args[1].shape[-1]
        elif name in ("addmm", "baddbmm"):
            self.count += args[1].numel() * args[2].shape[-1]
        return func(*args, **(kwargs or {}))


class Allocated(TorchDispatchMode):
    """The largest tensor that is made, views of what was there before left out."""

    def __init__(self, model):
        super().__init__()
        self.there = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self.largest, self.shapes = 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, torch.Tensor) and value.untyped_storage().data_ptr() not in self.there:
                self.largest = max(self.largest, value.numel())
                self.shapes.add(tuple(value.shape))
        return result


__all__ = [name for name in dir() if not name.startswith("_")] + ["track_modules"]
