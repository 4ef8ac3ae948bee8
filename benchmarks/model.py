"""The work that every benchmark does: one random GPT-NeoX, random tokens, one loss.

Imports nothing but torch and transformers, so that each tool can read it from its own virtual environment. Everything
is seeded: two processes that are given the same `Workload` hold the same weights and the same token ids.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM


@dataclass(frozen=True)
class Shape:
    """Sizes of a GPT-NeoX."""

    layers: int
    hidden: int
    heads: int
    intermediate: int
    vocab: int
    positions: int


def paper_shape() -> Shape:
    """The model on which the multi-stage paper compares estimators."""
    return Shape(layers=2, hidden=256, heads=2, intermediate=1024, vocab=4096, positions=512)


def small_shape() -> Shape:
    """A model for smoke runs of the benchmark itself; its ratios mean nothing."""
    return Shape(layers=2, hidden=32, heads=2, intermediate=64, vocab=128, positions=64)


def pythia_410m_shape() -> Shape:
    """Pythia-410m, for a GPU in bfloat16."""
    return Shape(layers=24, hidden=1024, heads=16, intermediate=4096, vocab=50304, positions=2048)


SHAPES = {"paper": paper_shape, "small": small_shape, "pythia-410m": pythia_410m_shape}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def random_model(
    shape: Shape, seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> GPTNeoXForCausalLM:
    """A randomly initialised model in `eval` mode (it has no dropout), all parameters trainable."""
    config = GPTNeoXConfig(
        num_hidden_layers=shape.layers,
        hidden_size=shape.hidden,
        num_attention_heads=shape.heads,
        intermediate_size=shape.intermediate,
        vocab_size=shape.vocab,
        max_position_embeddings=shape.positions,
        use_cache=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPTNeoXForCausalLM(config)
    return model.to(device=device, dtype=dtype).eval()


def paper_model(seed: int = 0) -> GPTNeoXForCausalLM:
    """The paper's model in float32 on the CPU."""
    return random_model(paper_shape(), seed)


def batches(
    seed: int, sequences: int = 64, length: int = 512, per_batch: int = 8, vocab: int = 4096, device: str = "cpu"
) -> list[Tensor]:
    """Random token ids, `sequences` in all, as tensors of shape (at most `per_batch`, `length`)."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(vocab, (sequences, length), generator=generator)
    return [batch.to(device) for batch in ids.split(per_batch)]


def next_token_logits(model: nn.Module, ids: Tensor) -> Tensor:
    """Logits of every token but the first, of shape (tokens, vocab), in float32 or better."""
    logits = model(input_ids=ids).logits[:, :-1].flatten(0, 1)
    return logits if logits.dtype == torch.float64 else logits.float()


def token_loss(model: nn.Module, ids: Tensor) -> Tensor:
    """Cross-entropy summed over every token but the first of each sequence."""
    return F.cross_entropy(next_token_logits(model, ids), ids[:, 1:].flatten(), reduction="sum")


def tracked_modules(model: nn.Module) -> list[str]:
    """Names of the attention and MLP linear maps of the decoder layers; the unembedding is not one."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and ".layers." in name]


@dataclass(frozen=True)
class Workload:
    """What is computed: the same for every tool. Queries are sequences of the same length as the data."""

    shape: Shape
    sequences: int = 64
    length: int = 512
    per_batch: int = 8
    queries: tuple[int, ...] = (1, 64)
    seed: int = 0
    dtype: str = "float32"
    device: str = "cpu"
    threads: int = field(default_factory=torch.get_num_threads)

    def model(self) -> GPTNeoXForCausalLM:
        """A fresh copy of the model; every call gives the same weights."""
        return random_model(self.shape, self.seed, DTYPES[self.dtype], self.device)

    def data(self) -> list[Tensor]:
        """Token batches of the training documents."""
        return self._batches(self.seed, self.sequences)

    def query_data(self, queries: int) -> list[Tensor]:
        """Token batches of the first `queries` queries."""
        return self._batches(self.seed + 1, queries)

    def _batches(self, seed: int, sequences: int) -> list[Tensor]:
        return batches(seed, sequences, self.length, self.per_batch, self.shape.vocab, self.device)

    def to_json(self) -> dict[str, Any]:
        """The fields as plain values."""
        return asdict(self)


def add_workload_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that choose the work; `workload_from` reads them."""
    group = parser.add_argument_group("work")
    group.add_argument("--shape", choices=SHAPES, default="paper", help="model sizes (default: paper)")
    group.add_argument("--small", action="store_true", help="smoke run: tiny model, 8 sequences of 32, 1 and 4 queries")
    group.add_argument("--sequences", type=int, help="training documents (default: 64)")
    group.add_argument("--length", type=int, help="tokens of a document or query (default: 512)")
    group.add_argument("--per-batch", type=int, help="sequences in a batch (default: 8)")
    group.add_argument("--queries", type=int, nargs="+", help="numbers of queries to score (default: 1 64)")
    group.add_argument("--seed", type=int, default=0, help="of the weights; tokens and labels derive from it")
    group.add_argument("--dtype", choices=DTYPES, default="float32", help="of the model (default: float32)")
    group.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    group.add_argument("--threads", type=int, help="CPU threads of torch (default: torch's own choice)")


def workload_from(arguments: argparse.Namespace) -> Workload:
    """The `Workload` of parsed flags; also sets the number of CPU threads of this process."""
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    shape = "small" if arguments.small else arguments.shape
    work = Workload(SHAPES[shape](), seed=arguments.seed, dtype=arguments.dtype, device=arguments.device)
    if arguments.small:
        work = replace(work, sequences=8, length=32, per_batch=4, queries=(1, 4))
    given = {name: getattr(arguments, name) for name in ("sequences", "length", "per_batch")}
    if arguments.queries is not None:
        given["queries"] = tuple(arguments.queries)
    return replace(work, **{name: value for name, value in given.items() if value is not None})
