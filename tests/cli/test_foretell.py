"""Models of halves as folders: what is in them, and what the command keeps and refuses."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file
from test_methods import TAU
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from worlds import ALL, QUERY, by_candidate, call, fit_factors, influence

import msif
from msif.attribution.halves import Halves, foretold
from msif.foretell import main


def foretell(*arguments):
    return call(main, "--quiet", *arguments)


@pytest.fixture(scope="module")
def given(world):
    return ["--pretrained", world.base, "--finetuned", world.tuned, "--pretrained-factors", world.base_factors,
            "--learning-rate-sum", TAU]  # fmt: skip


@pytest.fixture(scope="module")
def halves(given, tmp_path_factory):
    folder = tmp_path_factory.mktemp("foretold") / "halves"
    assert foretell(*given, "--halves", "4:0.5", "--output", folder) == 0
    return folder


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_both_models_are_moved_by_what_is_foretold(world, halves):
    stage = msif.Stage(world.base, factors=world.base_factors, learning_rate_sum=TAU)
    changes = foretold(stage.side, stage.store, stage.tau, stage.training(), Halves(4, 0.5))
    before = {"pretrained": weights(world.base), "finetuned": weights(world.tuned)}
    assert sorted(path.name for path in halves.iterdir()) == ["0", "1", "2", "3", "halves.json"]
    sums = dict.fromkeys(before["pretrained"], 0)
    for number in range(4):
        for which, old in before.items():
            new = weights(halves / str(number) / which)
            assert new.keys() == old.keys()
            moved = set()
            for module in stage.side.tracked:
                change = changes[module.name][number]
                for key, own in (("weight", change[:, : module.d_in]), ("bias", change[:, -1])):
                    name = f"{module.path}.{key}".replace("lm_head", "embed_out")  # as it is saved
                    if name in old:
                        torch.testing.assert_close(new[name], old[name] + own, rtol=1e-5, atol=1e-7)
                        assert not torch.equal(new[name], old[name])
                        moved.add(name)
            assert all(torch.equal(new[name], old[name]) for name in old.keys() - moved)
            tokenizer = AutoTokenizer.from_pretrained(halves / str(number) / which)
            assert tokenizer("Ada")["input_ids"] == AutoTokenizer.from_pretrained(world.base)("Ada")["input_ids"]
            sums = {name: sums[name] + new[name] - old[name] for name in sums} if which == "pretrained" else sums
    # every two share out all sequences: their mean is the middle, whichever they are
    middle = foretold(stage.side, stage.store, stage.tau, stage.training(), Halves(1, 0.5))
    name = "gpt_neox.layers.0.mlp.dense_h_to_4h"
    torch.testing.assert_close(sums[f"{name}.weight"] / 4, middle["layers.0.mlp.dense_h_to_4h"][0][:, :-1],
                               rtol=1e-4, atol=1e-6)  # fmt: skip


def test_a_whole_step_and_four_halves_are_the_default(given, world, tmp_path):
    assert foretell(*given, "--output", tmp_path / "out") == 0
    assert json.loads((tmp_path / "out" / "halves.json").read_text())["halves"] == {"count": 4, "step": 1.0, "seed": 0}
    assert foretell(*given[:2], *given[4:], "--halves", 1, "--output", tmp_path / "one") == 0
    assert [path.name for path in (tmp_path / "one" / "0").iterdir()] == ["pretrained"]


def test_noise_alone_takes_no_data(given, world, tmp_path, monkeypatch):
    monkeypatch.setattr(msif.Stage, "training", None)
    assert foretell(*given, "--halves", "2:0:0.5", "--output", tmp_path / "out") == 0
    told = json.loads((tmp_path / "out" / "halves.json").read_text())["halves"]
    assert told == {"count": 2, "step": 0.0, "seed": 0, "noise": 0.5}
    stage = msif.Stage(world.base, factors=world.base_factors, learning_rate_sum=TAU)
    changes = foretold(stage.side, stage.store, stage.tau, [], Halves(2, 0.0, noise=0.5))
    name = "layers.0.mlp.dense_h_to_4h"
    for number in range(2):
        new, old = (weights(folder)[f"gpt_neox.{name}.weight"] for folder in
                    (tmp_path / "out" / str(number) / "finetuned", world.tuned))  # fmt: skip
        torch.testing.assert_close(new, old + changes[name][number][:, :-1], rtol=1e-5, atol=1e-7)


def test_what_is_there_is_kept_and_what_is_missing_made_again(given, halves, tmp_path, monkeypatch, capfd):
    folder = tmp_path / "halves"
    shutil.copytree(halves, folder)
    before = weights(folder / "2" / "finetuned")
    shutil.rmtree(folder / "2")
    stamp = (folder / "1" / "pretrained" / "model.safetensors").stat().st_mtime_ns
    asked = [*given, "--halves", "4:0.5", "--output", folder]
    monkeypatch.setattr("msif.foretelling.moved_side", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main([str(part) for part in asked])
    monkeypatch.undo()
    assert sorted(path.name for path in folder.iterdir()) == ["0", "1", "3", "halves.json"]
    assert foretell(*asked) == 0
    again = weights(folder / "2" / "finetuned")
    assert all(torch.equal(again[name], value) for name, value in before.items())
    assert (folder / "1" / "pretrained" / "model.safetensors").stat().st_mtime_ns == stamp
    monkeypatch.setattr("msif.foretelling.foretold", lambda *_: 1 / 0)  # all is there
    assert foretell(*asked) == 0
    capfd.readouterr()
    assert foretell(*given, "--halves", "4:0.7", "--output", folder) == 2
    assert "holds halves of other halves: choose another --output" in capfd.readouterr().err
    assert foretell(*given, "--halves", "4:0.5", "--examples", 3, "--output", folder) == 2
    assert "holds halves of other examples" in capfd.readouterr().err


def test_a_classifier_moves_where_it_is_like_the_first(world, given, tmp_path):
    flags = ["--pretrained", world.base, "--pretrained-factors", world.base_factors, "--learning-rate-sum", TAU]
    judge = ["--finetuned", world.judge, "--task", "classification", "--halves", 2]
    assert foretell(*flags, *judge, "--output", tmp_path / "out") == 0
    old, new = (AutoModelForSequenceClassification.from_pretrained(folder).state_dict()
                for folder in (world.judge, tmp_path / "out" / "0" / "finetuned"))  # fmt: skip
    base, moved = (AutoModelForCausalLM.from_pretrained(folder).state_dict()
                   for folder in (world.base, tmp_path / "out" / "0" / "pretrained"))  # fmt: skip
    assert torch.equal(old["score.weight"], new["score.weight"])
    name = "gpt_neox.layers.0.attention.dense.weight"
    torch.testing.assert_close(new[name] - old[name], moved[name] - base[name], rtol=1e-3, atol=1e-6)


def test_the_way_from_halves_to_a_mean(world, halves, tmp_path):
    from msif.average import main as average

    for number in (0, 1):
        flags = []
        for which, data in (("pretrained", "corpus"), ("finetuned", "pairs")):
            model, factors = halves / str(number) / which, tmp_path / f"{number}-{which}"
            assert fit_factors("--model", model, "--data", world.folder / f"{data}.jsonl", "--output", factors) == 0
            flags += [f"--{which}", model, f"--{which}-factors", factors]
        corpus = ["--corpus", world.folder / "corpus.jsonl", *QUERY, *ALL]
        assert influence(*flags, *corpus, "--output", tmp_path / f"run-{number}") == 0
    runs = [tmp_path / "run-0", tmp_path / "run-1"]
    assert call(average, *runs, "--output", tmp_path / "mean") == 0
    one, two, mean = (by_candidate(folder) for folder in (*runs, tmp_path / "mean"))
    assert mean == pytest.approx({name: (one[name] + two[name]) / 2 for name in one}, rel=1e-4, abs=1e-6)
    assert one != pytest.approx(two, rel=1e-2)


def test_what_is_wrong_is_told(world, given, tmp_path, capfd):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    other = ["--pretrained-factors", world.base_factors, "--pretrained-data", world.folder / "pairs.jsonl"]
    cases = [
        (["--output", tmp_path / "full"], "is not empty and holds no foretold halves: choose another --output"),
        (["--output", tmp_path / "a", "--halves", 3], "there are 3 halves: they come in twos"),
        (["--output", tmp_path / "a", "--halves", "few"], "halves are 'few:1': write how many"),
        (["--output", tmp_path / "a", "--learning-rate-sum", 0], "sum to 0: give --learning-rate-sum above 0"),
        (["--output", tmp_path / "a", *other], "is not what the factors in .* were fitted on"),
        (["--output", tmp_path / "a", "--pretrained-factors", world.tuned_factors], "have changed since the factors"),
    ]
    for flags, said in cases:
        capfd.readouterr()
        assert foretell(*given, *flags) == 2, said
        assert re.search(said, capfd.readouterr().err), said
        assert not (tmp_path / "a").exists()
    assert foretell("--output", tmp_path / "a") == 2
    assert "--pretrained" in capfd.readouterr().err
