"""The segments of a training, by the checkpoints that a Trainer left."""

import pytest
import torch
from helpers import tiny_lm, track_modules
from trainings import leave, trained

from msif.errors import MsifError
from msif.models.training import TrainingUnknown, natural_tau, training_segments


def folders(root, steps, last):
    for step in steps:
        leave(root / f"checkpoint-{step}", steps=step)
    (root / "checkpoint-notes").mkdir()
    return leave(root, steps=last)


def test_checkpoints_are_ordered_by_step_and_the_model_is_the_last(tmp_path):
    model = folders(tmp_path, (100, 20, 9), 120)
    assert [path.name for path in training_segments(tmp_path, model)[:-1]] == [
        *("checkpoint-9", "checkpoint-20", "checkpoint-100")
    ]
    assert training_segments(tmp_path, model)[-1] == model
    leave(tmp_path / "checkpoint-120", steps=120)  # the model again
    assert len(training_segments(tmp_path, model)) == 4
    by_checkpoint = training_segments(tmp_path, tmp_path / "checkpoint-120")
    assert [path.name for path in by_checkpoint][-2:] == ["checkpoint-100", "checkpoint-120"]


def test_a_training_without_checkpoints_is_one_segment(tmp_path):
    assert training_segments(tmp_path, tmp_path) == [tmp_path]


def test_what_is_no_folder_of_its_checkpoints_is_named(tmp_path):
    model = leave(tmp_path / "model", steps=50)
    with pytest.raises(MsifError, match="there is no folder"):
        training_segments(tmp_path / "none", model)
    with pytest.raises(MsifError, match="holds no checkpoint-N"):
        training_segments(tmp_path, model)
    leave(tmp_path / "checkpoint-60", steps=60)
    with pytest.raises(MsifError, match="checkpoint-60 was saved after the 50 steps"):
        training_segments(tmp_path, model)
    (model / "trainer_state.json").unlink()
    with pytest.raises(MsifError, match=r"give the last checkpoint, .*checkpoint-60"):
        training_segments(tmp_path, model)


def test_tau_of_a_segment_is_of_its_own_steps(tmp_path):
    """With the second moments that the optimizer had at its end."""
    model = tiny_lm()
    tracked = track_modules(model, "layers")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    rates = dict.fromkeys(range(1, 41), 0.01)
    early = leave(tmp_path / "early", trained(model, optimizer, 2), {s: r for s, r in rates.items() if s <= 10}, 10)
    late = leave(tmp_path / "late", trained(model, optimizer, 2), rates, 40)
    whole, since = natural_tau(late, model, tracked), natural_tau(late, model, tracked, since=early)
    for name in whole:
        torch.testing.assert_close(since[name], whole[name] * 30 / 40)
    first = natural_tau(early, model, tracked)
    assert not torch.allclose(first[tracked[0].name] * 3, since[tracked[0].name])  # V has moved on
    with pytest.raises(TrainingUnknown, match="sum to"):
        natural_tau(early, model, tracked, since=late)
    (early / "optimizer.pt").unlink()
    with pytest.raises(TrainingUnknown, match=r"no optimizer.pt beside .*early"):
        natural_tau(late, model, tracked, since=early)
