"""The small real tasks: fresh models by seed, batches that do not repeat, losses per sample."""

from __future__ import annotations

import pytest
import torch

from steelyard.data import load
from steelyard.trials.tasks import RECIPES, Task


def task(name: str, seed: int, **options) -> Task:
    try:
        load(RECIPES[name].data)
    except ValueError as error:
        pytest.skip(str(error))
    return Task(name, seed, **options)


def test_an_unknown_name_is_one_line():
    with pytest.raises(ValueError, match="unknown task 'image': there are images, text, reviews"):
        Task("image", 0)


def test_batches_do_not_repeat_within_an_epoch_and_streams_differ():
    images = task("images", 3, batch=1000)
    stream = images.batches()
    epoch = torch.cat([next(stream) for _ in range(60)])
    assert len(epoch.unique()) == 60_000
    assert torch.equal(next(images.batches()), epoch[:1000])
    assert not torch.equal(next(images.batches(1)), epoch[:1000])


def test_the_seed_decides_the_weights_and_the_global_state_is_left_alone():
    before = torch.get_rng_state()
    one, same, other = (task("images", seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    weights = [next(t.model.parameters()) for t in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_losses_are_one_per_sample_and_the_test_loss_is_of_the_model():
    images = task("images", 0, batch=8)
    losses = images.losses(next(images.batches()))
    assert losses.shape == (8,)
    assert losses.requires_grad
    start = images.test()
    assert start["loss"] == pytest.approx(2.30, abs=0.1)
    with torch.no_grad():
        for p in images.model.parameters():
            p.zero_()
    assert images.test()["loss"] == pytest.approx(torch.tensor(10.0).log().item(), abs=1e-5)


def test_options_replace_the_recipes(tmp_path):
    text = task("text", 0, width=32)
    assert text.losses(next(text.batches())).shape == (16,)
    assert text.model.head.weight.shape[1] == 32
