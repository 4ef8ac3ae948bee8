"""Gradients by hooks against autograd's own: faults are told, nothing else is, and no trace is left."""

import pytest
import torch
from architectures import ARCHITECTURES, tiny_model
from helpers import (
    MLP,
    VOCABULARY,
    Classify,
    SquaredError,
    documents,
    examples,
    labelled,
    spread,
    tiny_classifier,
    tiny_lm,
    track_plain,
)
from peft import LoraConfig, get_peft_model
from test_uses import Tokens
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from transformers import T5Config, T5ForConditionalGeneration

from msif.attribution.gradients import Side, query_gradients
from msif.curvature.fit import fit
from msif.curvature.ggn import GGN
from msif.data.documents import Batch, collate
from msif.errors import MsifError
from msif.models import check
from msif.models.capture import Capture, Consumer
from msif.models.check import check_once
from msif.models.objectives import CausalLM, Regression, SequenceClassification
from msif.models.select import track_modules

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# these do not run in float64
NO_DOUBLES = ("gpt_oss", "minimax", "mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "xglm")


@pytest.fixture(autouse=True)
def told(monkeypatch):
    """What checks have said of models that they passed over; a test fails that does not take it out."""
    lines: list[str] = []
    for level in ("info", "warning"):
        monkeypatch.setattr(check.log, level, lambda text, *values: lines.append(text % values))
    yield lines
    assert not lines


def tied(model, x):
    """An unembedding that is a product with the table, and no module."""
    return x + torch.tanh(model.maps[0](x)) @ model.embed.weight.T @ model.embed.weight


def read_past(model, x):
    return model.maps[0](x) + torch.tanh(x) @ model.maps[0].weight.T


def experts(model, x):
    """Two of two: rows by first choice, then by second."""
    rows = x.reshape(-1, 6)
    weights, chosen = torch.topk(rows[:, :2].softmax(-1), 2)
    total = torch.zeros_like(rows)
    for number in (0, 1):
        place, which = torch.where((chosen == number).T)
        total = total.index_add(0, which, torch.tanh(model.maps[number](rows[which])) * weights[which, place, None])
    return total.view_as(x)


def relative_positions(model, x):
    """A table's rows for pairs of positions, which may be as many as there are sequences."""
    place = torch.arange(x.shape[1])
    return (x @ x.mT + model.table((place[:, None] - place).abs())[..., 0]).softmax(-1) @ x


def other_sequences(model, x):
    return model.maps[0](x.flip(0)).flip(0)


FAULTS = [
    (tied, "embed"),
    (read_past, "maps.0"),
    (experts, "maps.0"),
    (relative_positions, "table"),
    (other_sequences, "maps.0"),
]


def faulty(between, dtype=torch.float64):
    model = spread(Tokens(between))
    model.table = nn.Embedding(VOCABULARY, 6)
    return model.to(dtype)


@pytest.mark.parametrize(("between", "name"), FAULTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_hooks_do_not_see_is_told(between, name, dtype):
    model = faulty(between, dtype)
    side = Side(model, track_modules(model, f"^{name}"), CausalLM())
    texts = [collate(documents([6] * 6))]  # rows of all pairs look like positions of all sequences
    for _ in range(2):
        with pytest.raises(MsifError, match=f"module '{name}'.*leave it out with --modules"), torch.no_grad():
            query_gradients(side, texts)
    with pytest.raises(MsifError, match=f"module '{name}'"):
        GGN(model, side.tracked, CausalLM(), texts).matvec({name: torch.ones(1, *side.tracked[0].shape)})
    query_gradients(Side(model, track_modules(model, "out"), CausalLM()), texts)


def test_a_fit_tells_it_of_any_layer_before_its_first_pass(tmp_path):
    model, looks = faulty(read_past), []

    class Batches(list):
        def __iter__(self):
            looks.append(self)
            return super().__iter__()

    with pytest.raises(MsifError, match=r"module 'maps\.0'"):
        batches = Batches([collate(documents([6, 5]))])
        fit(model, track_modules(model), CausalLM(), batches, tmp_path / "deep" / "factors")
    assert len(looks) == 3  # an iterator or not, the first batch, what the data is
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_architecture_is_accused(dtype, attention):
    for name in ARCHITECTURES:
        try:
            model = tiny_model(name, attention).to(dtype)
        except ValueError:  # only eager
            continue
        if name in NO_DOUBLES and dtype == torch.float64:
            continue
        tracked = track_modules(model, "everything", split_heads=False)
        for rows in ([9], [3, 9]):
            check_once(model, tracked, CausalLM(), collate(documents(rows)))


def gradients(model, objective, batch, tracked=None):
    query_gradients(Side(model, tracked or track_modules(model, "everything"), objective), [batch])


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_kind_of_model_and_objective_is_accused(dtype):
    model = tiny_classifier(dtype=dtype)
    gradients(model, SequenceClassification(0), collate(documents([5, 3], labels=True)))
    model = tiny_classifier(dtype=dtype, num_labels=2, problem_type="regression")
    gradients(model, Regression(0, 2), collate(labelled([5, 3], [(1e4, 2), (3, -4)])))
    x = torch.randn(5, 4).to(dtype)
    for objective, y in ((Classify(), torch.tensor([0, 1, 2, 1, 0])), (SquaredError(), torch.randn(5, 3).to(dtype))):
        model = spread(MLP([4, 5, 3])).to(dtype)
        gradients(model, objective, examples(x, y)[0], track_plain(model))


def test_a_float16_gradient_that_vanishes_is_no_fault():
    """Of the product alone: its factors are far from the least number."""
    model = spread(Tokens(lambda model, x: x + model.maps[0](x * 1e-4), bias=False))
    model.out.weight.data *= 1e-5
    gradients(model.half(), CausalLM(), collate(documents([5, 3])), track_modules(model, "maps.0"))


class Copied(CausalLM):
    """An encoder-decoder that is to say what it reads."""

    def outputs(self, model, batch):
        ids, mask = batch.input_ids, batch.attention_mask
        return model(input_ids=ids, attention_mask=mask, decoder_input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_encoder_decoder_is_checked(dtype):
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    model = T5ForConditionalGeneration(T5Config(vocab_size=VOCABULARY, decoder_start_token_id=0, **sizes)).to(dtype)
    batch = collate(documents([6, 4]))
    gradients(model, Copied(), batch, track_modules(model, r"Attention\.[qkvo]$|Dense|layer_norm|shared"))
    with pytest.raises(MsifError, match=r"relative_attention_bias.*\(6, 6\) rows"):
        gradients(model, Copied(), batch, track_modules(model, "relative_attention_bias"))


def test_maps_of_an_adapter_are_checked():
    model = get_peft_model(tiny_lm(dtype=torch.float32), LoraConfig(r=2, target_modules=["query_key_value"]))
    spread(model)
    tracked = [module for module in track_plain(model) if "lora" in module.name]
    assert len(tracked) == 4
    gradients(model, CausalLM(), collate(documents([5, 3])), tracked)


def test_weights_that_are_not_whole_or_have_no_gradient_of_their_own_are_passed_over():
    batch = collate(documents([5, 3]))
    model = tiny_lm().to("meta")
    check_once(model, track_modules(model), CausalLM(), batch)
    model = spread(Tokens(lambda model, x: model.maps[0](x) + model.maps[1](x)))
    tracked = [module for module in track_plain(model) if module.name.startswith("maps.")]
    model.maps[1] = model.maps[0]
    model.maps[2] = weight_norm(model.maps[2])
    check_once(model, tracked, CausalLM(), batch)


def test_hooks_of_parameters_do_not_run():
    """They mask gradients, or make the optimizer's step."""
    model, ran = tiny_lm(), []
    tracked = track_modules(model)
    model.lm_head.weight.register_hook(lambda gradient: ran.append(gradient) or 0 * gradient)
    model.gpt_neox.layers[0].mlp.dense_h_to_4h.bias.register_post_accumulate_grad_hook(ran.append)
    gradients(model, CausalLM(), collate(documents([5, 3])), tracked)
    assert not ran


def test_a_check_leaves_no_trace():
    model, batch = tiny_lm(dtype=torch.bfloat16), collate(documents([5, 4]))
    model.lm_head.weight.requires_grad_(False)
    tracked = track_modules(model, "everything")
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    flags, calls = [(parameter.requires_grad, parameter.grad) for parameter in model.parameters()], []
    model.train()
    model.lm_head.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(2):
        gradients(model, CausalLM(), batch, tracked)
        gradients(model, CausalLM(), batch, tracked[:3])
    assert len(calls) == 5  # once for a model and what is tracked of it
    vectors = {module.name: torch.ones(1, *module.shape) for module in tracked}
    GGN(model, tracked, CausalLM(), [batch]).matvec(vectors)
    fresh = spread(tiny_lm(dtype=torch.bfloat16))
    fresh.lm_head.weight.grad = torch.ones_like(fresh.lm_head.weight)
    GGN(fresh, tracked, CausalLM(), [batch]).matvec(vectors)
    assert fresh.lm_head.weight.grad.dtype == torch.bfloat16 and fresh.lm_head.weight.requires_grad
    for parameter, (flag, gradient) in zip(model.parameters(), flags, strict=True):
        assert parameter.requires_grad == flag and parameter.grad is gradient and (gradient == 1).all()
        assert not parameter._post_accumulate_grad_hooks
    assert sum(len(module._forward_hooks) for module in model.modules()) == 1 and model.training


def test_random_numbers_are_as_they_were():
    def noisy(model, x):
        return model.maps[0](x) + torch.rand(())

    drawn = []
    for checked in (False, True):
        model = spread(Tokens(noisy))
        torch.manual_seed(3)
        if checked:
            check_once(model, track_modules(model), CausalLM(), collate(documents([5, 4])))
        drawn.append(torch.rand(()))
    assert drawn[0] == drawn[1]


def test_one_sequence_is_no_check_of_several():
    model, tokens = faulty(other_sequences), []
    model.embed.register_forward_hook(lambda _, args, output: tokens.append(args[0].shape))
    side = Side(model, track_modules(model, "maps.0"), CausalLM())
    for _ in range(2):
        query_gradients(side, [collate(documents([6]))])
    assert tokens == [(1, 6), (1, 6), (1, 6)]
    with pytest.raises(MsifError, match=r"module 'maps\.0'"):
        query_gradients(side, [collate(documents([6])), collate(documents([6, 6]))])


def test_passes_whose_gradients_nobody_reads_are_no_reason_for_a_check():
    model, objective, batch = faulty(read_past), CausalLM(), collate(documents([6, 5]))
    tracked = track_modules(model, "maps.0")

    class Probe(Consumer):
        pass

    for consumer, cotangents in ((Consumer(), [objective.loss_gradient]), (Probe(), [])):
        with Capture(model, tracked, consumer) as capture:
            capture.run(objective, batch, cotangents)


def test_a_model_that_does_not_take_the_few_tokens_is_not_checked(told):
    def threes(model, x):
        return model.maps[0](x.unflatten(0, (-1, 3)).flatten(0, 1))

    gradients(spread(Tokens(threes)), CausalLM(), collate(documents([8, 8, 8])))
    message = told.pop()
    assert "not checked" in message and "multiply up to" in message


def padded(model, x):
    """As models with windows do."""
    more = -x.shape[1] % 4
    return model.maps[0](nn.functional.pad(x, (0, 0, 0, more)))[:, : x.shape[1]]


def fours(model, x):
    return model.maps[0](x.unflatten(1, (-1, 4)).flatten(1, 2))


def long_only(model, x):
    return model.maps[0](x) if x.shape[1] > 11 else x


@pytest.mark.parametrize("between", [padded, fours, long_only])
def test_a_model_that_takes_its_own_lengths_only_is_checked_with_them(between, told):
    gradients(spread(Tokens(between)), CausalLM(), collate(documents([16, 16])))
    wrong = lambda model, x: between(model, x) + 0.3 * x @ model.maps[0].weight.T  # noqa: E731
    with pytest.raises(MsifError, match=r"module 'maps\.0'"):
        gradients(spread(Tokens(wrong)), CausalLM(), collate(documents([16, 16])))


def test_no_position_is_asked_for_that_the_data_has_not():
    """On a GPU an index beyond a table ends the process."""
    model = tiny_model("gpt2", n_positions=6)
    seen = []
    handle = model.transformer.wpe.register_forward_hook(lambda module, args, output: seen.append(int(args[0].max())))
    gradients(model, CausalLM(), collate(documents([5, 4])))
    handle.remove()
    assert max(seen) == 4


def test_each_kind_of_objective_is_checked():
    class Fed(CausalLM):
        """Its outputs read the unembedding once more."""

        def outputs(self, model, batch):
            outputs = super().outputs(model, batch)
            weight = model.get_output_embeddings().weight
            return outputs + torch.tanh(outputs @ weight) @ weight.T

    model, batch = tiny_lm(), collate(documents([5, 3]))
    gradients(model, CausalLM(), batch, track_modules(model, "maps"))
    with pytest.raises(MsifError, match=r"module '(embed_out|lm_head)'"):
        gradients(model, Fed(), batch, track_modules(model, "maps"))


@pytest.mark.parametrize("positions", [11, 256])
def test_it_is_as_sharp_with_many_positions(positions, monkeypatch):
    """In bfloat16, of a batch of the caller's own kind, which is taken whole."""

    def faint(model, x):
        return model.maps[0](x) + 0.3 * torch.tanh(x.flip(2)) @ model.maps[0].weight.T

    batch = collate(documents([positions, positions]))
    monkeypatch.setattr(Batch, "pair", lambda self, tokens=11: self)
    with pytest.raises(MsifError, match=r"module 'maps\.0'"):
        gradients(spread(Tokens(faint)).to(torch.bfloat16), CausalLM(), batch)


def test_a_check_that_ran_out_of_memory_is_made_again(monkeypatch, told):
    model, batch = faulty(read_past, torch.float32), collate(documents([5, 3]))
    with monkeypatch.context() as patch:
        patch.setattr(check, "_projected", runs_out)
        gradients(model, CausalLM(), batch)
    assert "out of memory" in told.pop()
    with pytest.raises(MsifError, match=r"module 'maps\.0'"):
        gradients(model, CausalLM(), batch)


def runs_out(*_):
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_map_whose_weight_is_read_past_it_only_is_named(told):
    model = spread(Tokens(lambda model, x: model.attention(x, x, x, need_weights=False)[0] + x))
    model.attention = nn.MultiheadAttention(6, 2, batch_first=True)
    gradients(model, CausalLM(), collate(documents([5, 3])), track_modules(model, "out_proj|^out", split_heads=False))
    assert told.pop() == "Not tracked: attention.out_proj (the forward pass does not run them as modules)"


def test_what_does_not_run_and_takes_no_part_is_not_named():
    model = spread(Tokens(lambda model, x: model.maps[0](x)))
    gradients(model, CausalLM(), collate(documents([5, 3])))


@pytest.mark.parametrize("rows", [[2, 2], [3, 1], [9, 4, 12], [20, 20], [1]])
def test_a_pair_is_of_two_lengths(rows):
    batch = collate(documents(rows))
    pair, few = batch.pair(), min(len(rows), 2)
    most = min(11, max(rows))
    assert pair.input_ids.shape == (few, most)
    assert pair.attention_mask.sum(1).tolist() == [most, max(1, most - 2)][:few]
    for row, of in enumerate([0, len(rows) - 1][:few]):
        assert set(pair.input_ids[row].tolist()) <= set(batch.input_ids[of, : rows[of]].tolist())


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_model_on_a_gpu(dtype):
    model, drawn = tiny_lm(dtype=dtype).cuda(), torch.cuda.get_rng_state()
    gradients(model, CausalLM(), collate(documents([5, 3])))
    assert torch.equal(torch.cuda.get_rng_state(), drawn)
    model = faulty(read_past, dtype).cuda()
    with pytest.raises(MsifError, match=r"module 'maps\.0'"):
        gradients(model, CausalLM(), collate(documents([5, 3])))
