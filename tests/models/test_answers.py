"""The model's own answer: always the likeliest token, with the tokens that it generated."""

import json

import pytest
import torch
from helpers import tiny_lm
from transformers import AutoModelForCausalLM

from msif.errors import UnusableError
from msif.models.answers import greedy_completion

PROMPT = [3, 1, 4, 1, 5]
SEED = 2  # it goes on with 8 9 2 8 9 2 ..., which penalties, n-gram rules and beams would not have
CONFIGURATIONS = {
    "nothing": {},
    "sampling": {"do_sample": True, "temperature": 5.0, "top_k": 3, "top_p": 0.2},
    "beams": {"num_beams": 4, "length_penalty": 2.0, "early_stopping": True},
    "several sequences": {"num_return_sequences": 3, "num_beams": 3},
    "several sequences, sampled": {"num_return_sequences": 3, "do_sample": True},
    "contrastive search": {"penalty_alpha": 0.6, "top_k": 4},
    "group search": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0},
    "DoLa": {"dola_layers": "high"},
    "constraints": {"force_words_ids": [[5]], "num_beams": 2},
    "stop strings": {"stop_strings": ["a"]},
    "repetition penalty": {"repetition_penalty": 5.0, "encoder_repetition_penalty": 2.0},
    "no repetition": {"no_repeat_ngram_size": 1, "encoder_no_repeat_ngram_size": 1},
    "suppressed": {"suppress_tokens": [1, 2, 3, 4, 5], "begin_suppress_tokens": [6, 7], "bad_words_ids": [[8], [9]]},
    "forced": {"forced_bos_token_id": 7, "forced_eos_token_id": 8},
    "biased": {"sequence_bias": [[[6], 50.0]], "renormalize_logits": True, "remove_invalid_values": True},
    "lengths": {"max_length": 3, "min_length": 50, "max_new_tokens": 1, "min_new_tokens": 1, "max_time": 0.0001},
    "decaying lengths": {"exponential_decay_length_penalty": [1, 50.0]},
    "watermark": {"watermarking_config": {"bias": 50.0, "seeding_scheme": "lefthash"}},
    "guidance": {"guidance_scale": 3.0},
    "healing": {"token_healing": True},
    "dictionary": {"return_dict_in_generate": True, "output_scores": True, "output_attentions": True},
    "no cache": {"use_cache": False},
    "static cache": {"cache_implementation": "static"},
    "prompt lookup": {"prompt_lookup_num_tokens": 2, "assistant_confidence_threshold": 0.1},
}


class Letters:
    """Token n is the letter n."""

    eos_token_id = None

    def decode(self, ids, **_):
        return "".join(chr(ord("a") + token) for token in ids)


@torch.no_grad()
def likeliest(model, count, ends=()):
    ids = list(PROMPT)
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in ends:
            return tuple(ids[len(PROMPT) : -1])
    return tuple(ids[len(PROMPT) :])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_lm(SEED, torch.float32, eos_token_id=None).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("configuration", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_the_answer_is_greedy_whatever_the_configuration_asks_for(folder, configuration):
    (folder / "generation_config.json").write_text(json.dumps(configuration))
    model = AutoModelForCausalLM.from_pretrained(folder).train()
    before = model.generation_config.to_dict()
    assert greedy_completion(model, Letters(), PROMPT, 6).ids == likeliest(model.eval(), 6)
    assert model.generation_config.to_dict() == before


def test_legacy_settings_in_the_models_own_configuration_do_not_count(folder, tmp_path):
    tiny_lm(SEED, torch.float32, eos_token_id=None).save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_beams": 4, "repetition_penalty": 3.0}))
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert greedy_completion(model, Letters(), PROMPT, 6).ids == likeliest(model, 6)


@pytest.mark.parametrize("ends", ["one", "a list", "the tokenizer's"])
def test_the_token_that_ends_the_text_is_no_part_of_the_answer(ends):
    model, tokenizer = tiny_lm(SEED, torch.float32, eos_token_id=None).eval(), Letters()
    whole = likeliest(model, 8)
    end = next(token for token in whole[1:] if token != whole[0])
    if ends == "the tokenizer's":
        tokenizer.eos_token_id = end
    else:
        model.generation_config.eos_token_id = end if ends == "one" else [10, end]
    expected = whole[: whole.index(end)]
    assert greedy_completion(model, tokenizer, PROMPT, 8).ids == expected == likeliest(model, 8, [end])
    tokenizer.eos_token_id = whole[0]
    with pytest.raises(UnusableError, match="the model answers nothing to 'dbebf': give a completion"):
        greedy_completion(model, tokenizer, PROMPT, 8)


def test_the_model_comes_back_as_it_was_also_after_a_failure():
    model = tiny_lm(SEED, torch.float32, eos_token_id=None).train()
    own = model.generation_config
    greedy_completion(model, Letters(), PROMPT, 2)
    assert model.training and model.generation_config is own
    with pytest.raises(IndexError):
        greedy_completion(model, Letters(), [10**6], 2)
    assert model.training and model.generation_config is own


def test_positions_end_an_answer():
    model = tiny_lm(SEED, torch.float32, eos_token_id=None)
    assert len(greedy_completion(model, Letters(), PROMPT, 32, positions=8).ids) == 3
    with pytest.raises(UnusableError, match="the prompt has 5 tokens and the model 5 positions"):
        greedy_completion(model, Letters(), PROMPT, 32, positions=5)
    with pytest.raises(UnusableError, match="the prompt has no tokens"):
        greedy_completion(model, Letters(), [], 32)
