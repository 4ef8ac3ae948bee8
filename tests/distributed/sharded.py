"""Run by every process: fits, scores and words of models whose weights are shared out, against those of whole ones."""

import os
import sys
from pathlib import Path

import numpy as np
import torch
from helpers import VOCABULARY, alone, documents, spread
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from msif import distributed
from msif.attribution.gradients import Side
from msif.attribution.scorers import InfluenceScorer
from msif.curvature.fit import fit
from msif.curvature.preconditioners import EKFAC
from msif.models.objectives import CausalLM
from msif.models.select import track_modules
from msif.models.sharding import is_sharded, shard

folder = Path(sys.argv[1])
EQUAL = {"rtol": 0, "atol": 1e-6}


def llama():
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, num_key_value_heads=1, **sizes))


def gpt2():  # tied
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=8,
            n_layer=2,
            n_head=2,
            n_inner=12,
            n_positions=16,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def results(make, path, sharded):
    """Factors over five documents, scores of three, and the words of one, of two processes or of this one."""
    torch.manual_seed(0)
    model = spread(make()).double().eval()
    tracked = track_modules(model, "everything")
    if sharded:
        shard(model, torch.device("cpu"))
        assert is_sharded(model)
    batches = alone(documents([4, 6, 5, 7, 3]))
    store = fit(model, tracked, CausalLM(), batches, path, identity={"model": make.__name__})
    side = Side(model, tracked, CausalLM())
    scorer = InfluenceScorer(side, side, [EKFAC(store)], normalize="unit")
    vectors = distributed.computed(lambda: scorer.query_vectors(alone(documents([5, 4], seed=1))))
    candidates = alone(documents([3, 8, 4], seed=5))
    scores = scorer.score_vectors(vectors, candidates)
    words = scorer.explain(vectors, candidates[:1])[0].tokens
    assert all(not parameter.requires_grad for parameter in model.parameters()) == sharded
    return store, scores, words


whole = {make.__name__: results(make, folder / os.environ["RANK"] / make.__name__, False) for make in (llama, gpt2)}
distributed.start()
for make in (llama, gpt2):
    store, scores, words = results(make, folder / make.__name__, True)
    expected, wanted, parts = whole[make.__name__]
    for name in expected:
        here, there = store[name].Lambda, expected[name].Lambda
        torch.testing.assert_close(here, there, rtol=0, atol=1e-6 * float(there.max()), msg=name)
    largest = np.abs(wanted.values).max()
    np.testing.assert_allclose(scores.values / largest, wanted.values / largest, **EQUAL)
    np.testing.assert_allclose(words / largest, parts / largest, **EQUAL)
distributed.stop()
