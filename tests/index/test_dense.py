"""An index and its scores against explicit float64 gradients, with all matrices written out."""

from __future__ import annotations

import pytest
import torch
from architectures import tiny_model
from helpers import documents
from test_everything import check, gradients
from transformers import AutoTokenizer
from worlds import save_tokenizer

import msif
from msif.attribution.gradients import Side
from msif.attribution.random_matrices import normal_matrix
from msif.data.documents import collate
from msif.index.pools import indexed_modules, pools_of
from msif.index.roots import FLOOR
from msif.index.scorer import IndexScorer
from msif.index.settings import IndexSettings
from msif.index.storage import MOMENTS_FILE
from msif.indexing import make_index, opened_plan
from msif.models.objectives import CausalLM
from msif.models.training.moments import second_moments

TEXTS = [
    "Ada was born in Linz.",
    "rain, rain",
    "Late trains are late.",
    "Bo sold clocks in Graz",
    "a b",
    "Linz is old.",
    *(
        f"{word} {word[::-1]} and {number}"
        for number, word in enumerate(["mill", "goat", "rye", "harbour", "map", "bridge", "day"])
    ),
    *("Where? There.", "Who would buy it", "x=1", "no", "ZZZ zzz Z", "Danube"),
]
QUESTIONS = documents([7, 5, 9, 6, 8, 4, 5, 7, 6, 9, 5, 8], seed=7, prompt=2)
SMALL = {"blocks": 2, "projection": 3, "seed": 5, "dtype": "float32"}
UNTIED = {"vocab_size": 258, "tie_word_embeddings": False}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


def model_of(name="gpt2", **changes):
    torch.manual_seed(0)
    model = tiny_model(name, **{**UNTIED, **changes})
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.double().eval()


@pytest.fixture
def stage(tokenizer):
    return lambda model: msif.Stage(model, data=TEXTS, tokenizer=tokenizer)


def batches_alone(stage):
    return list(msif.Stage(stage.model, data=TEXTS, tokenizer=stage.tokenizer, batch_tokens=1).batches)


def dense_features(side, index, batches, moments):
    """(n, D): every block's Σ P_out (∇ ⊘ √V) P_inᵀ."""
    pools = pools_of(side.model, side.tracked, index.settings.blocks)
    p, rows = index.settings.projection, []
    V = [] if moments is None else [floored(one, 0.0, 0.0).flatten() for one in moments.values()]
    mean = float(torch.cat(V).mean()) if V else 0.0
    for batch in batches:
        total = torch.zeros(len(pools.names), p, p, dtype=torch.float64)
        for name, G in gradients(side.model, side.tracked, batch).items():
            if moments is not None:
                G = G * floored(moments[name], 1e-8, mean).rsqrt()
            P_out, P_in = (
                torch.from_numpy(normal_matrix(p, d, index.settings.seed, f"{end}|{name}")) / p**0.5
                for end, d in zip(("out", "in"), G.shape, strict=True)
            )
            total[pools.of[name]] += P_out @ G @ P_in.T
        rows.append(total.flatten())
    return torch.stack(rows)


def floored(moments, share, mean):
    """V as a matrix with its bias column, (d_out, d): no entry below a share of the mean over all parameters.

    Of a factored V no row and column below that share of their own means, and its mean not below that of all.
    """
    if isinstance(moments.weight, tuple):
        rows, columns = (side.double().clamp(min=share * float(side.mean())) for side in moments.weight)
        V = torch.outer(rows, columns)
        V = V * max(1.0, share * mean / float(V.mean()))
    else:
        V = moments.weight.double().clamp(min=share * mean)
    bias = [] if moments.bias is None else [moments.bias.double().clamp(min=share * mean)[:, None]]
    return torch.cat([V, *bias], 1)


def by_row(batches, rows):
    """Rows of a matrix in the order of row numbers."""
    order = torch.cat([batch.indices for batch in batches]).argsort()
    return rows[order]


def save_optimizer(model, folder, kind):
    """What a Trainer would leave of a few steps."""
    if kind == "adam":
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-9)
    else:
        from transformers.optimization import Adafactor

        optimizer = Adafactor(model.parameters(), lr=1e-9, relative_step=False, scale_parameter=False)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    for seed in range(3):
        batch = collate(documents([6, 8], seed=seed))
        optimizer.zero_grad()
        CausalLM().losses(CausalLM().outputs(model, batch), batch).sum().backward()
        optimizer.step()
    optimizer.zero_grad()
    folder.mkdir(exist_ok=True)
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    return folder


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt"])
@pytest.mark.parametrize("moments", ["none", "estimate", "adam", "adafactor"])
def test_features_and_scores_are_the_dense_ones(name, moments, stage, tmp_path):
    model = model_of(name)
    source = moments if moments in ("none", "estimate") else str(save_optimizer(model, tmp_path / "opt", moments))
    one = stage(model)
    index = make_index(one, tmp_path / "index", IndexSettings(**SMALL), second_moments=source)
    assert index is not None and len(index) == len(TEXTS)
    side = Side(model, indexed_modules(model, "everything", tied=False), CausalLM())
    V = None if moments == "none" else second_moments(tmp_path / "index" / MOMENTS_FILE, model, side.tracked)
    if V is not None:
        factored = {isinstance(found.weight, tuple) for found in V.values() if len(found.weight) > 1}
        assert moments == "adam" or True in factored
    batches = batches_alone(one)
    phi = by_row(batches, dense_features(side, index, batches, V))
    stored = index.rows([index.places[digest] for _, digest in one.corpus.hashes(("text",))])
    check(stored.double(), phi, 5e-5)  # in float32, over roots of small second moments: 1.5e-5 on some processors
    asked = dense_features(side, index, [collate([q]) for q in QUESTIONS], V)
    for r in ("none", "train", "mixed", "mixed:0.7"):
        roots, mix = dense_roots(r, phi, asked, index.columns)
        documents_, queries = phi @ roots, asked @ roots
        unit = [torch.nn.functional.normalize(rows) for rows in (queries, documents_)]
        for normalize, expected in (("none", queries @ documents_.T), ("unit", unit[0] @ unit[1].T)):
            scorer = IndexScorer(opened_plan(index, one), index, side, r=r, normalize=normalize)
            vectors = scorer.query_vectors([collate(QUESTIONS)])
            assert vectors.correction.mix == pytest.approx(mix, rel=1e-4)
            scores = scorer.score_vectors(vectors, one.batches)
            assert scores.candidates.tolist() == list(range(len(TEXTS)))
            check(scores.values, expected, 2e-4)


def dense_roots(r, phi, asked, columns):
    """(R^(−1/2), λ) as one matrix of all blocks."""
    D = phi.shape[1]
    if r == "none":
        return torch.eye(D, dtype=torch.float64), 0.0
    mask = torch.block_diag(*[torch.ones(one.stop - one.start, one.stop - one.start) for one in columns])
    train, evaluated = phi.T @ phi / len(phi) * mask, asked.T @ asked / len(asked) * mask
    if r == "train":
        mix = 0.0
    elif r == "mixed":
        first, second = (torch.linalg.eigvalsh(R).flip(0) for R in (evaluated, train))
        k = max(1, min(round(1000 * D / 65536), int((first > 1e-6 * first[0]).sum()))) - 1
        mix = float(second[k] / (first[k] + second[k]))
    else:
        mix = float(r.split(":")[1])
    R = mix * evaluated + (1 - mix) * train
    roots = torch.zeros(D, D, dtype=torch.float64)
    for one in columns:
        block = R[one, one]
        values, vectors = torch.linalg.eigh(block + FLOOR * float(block.trace()) / len(block) * torch.eye(len(block)))
        roots[one, one] = vectors @ torch.diag(values**-0.5) @ vectors.T
    return roots, mix
