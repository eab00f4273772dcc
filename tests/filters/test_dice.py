"""Error feedback: the paper's box as a loop over samples, its identities, and its state."""

from __future__ import annotations

import copy
import math
import runpy
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from steelyard.filters.attach import attach
from steelyard.filters.dice import Dice
from steelyard.filters.gaussian import Gaussian
from steelyard.rows.per_sample import PerSample
from steelyard.types import Clipped
from steelyard.weightings.clip import FlatClip

runs = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("dice_runs.py"))))
B, SIZES, model, losses, batches = runs.B, runs.SIZES, runs.model, runs.losses, runs.batches
flat, clip, stream, release, error = runs.flat, runs.clip, runs.stream, runs.release, runs.error


def weights(net: nn.Module) -> Tensor:
    return flat(list(net.parameters())).clone()


def private(
    dice: Dice, data: Sequence[Tensor], *, pieces: int = 1, groups="all", lr: float = 0.1, **options
) -> tuple[nn.Module, Dice]:
    """SGD with error feedback over the batches, each in so many micro-batches."""
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    with PerSample(net, FlatClip(dice.bound), expected_batch=B, groups=groups) as rows:
        attach(optimizer, rows, dice, **options)
        for x in data:
            for piece in x.tensor_split(pieces):
                rows.backward(losses(net, piece))
            optimizer.step()
            optimizer.zero_grad()
    return net, dice


# -- the box, sample by sample ---------------------------------------------------------------------


def gradients(net: nn.Module, x: Tensor) -> list[Tensor]:
    """One flat gradient for each sample, from a pass of its own."""
    found = []
    for i in range(len(x)):
        (loss,) = losses(net, x[i : i + 1])
        found.append(flat(torch.autograd.grad(loss, list(net.parameters()))))
    return found


def box(data, R1, R2, *, lr=0.1, g_max=math.inf, anti_windup=False, parts=None):
    """Section 2 of the paper's description, word by word. parts: slices clipped by themselves."""
    net = model()
    e = torch.zeros_like(weights(net))
    for x in data:
        g = gradients(net, x)
        clipped, raw = torch.zeros_like(e), torch.zeros_like(e)
        for one in g:
            for part in parts or [slice(None)]:
                share = 1 / math.sqrt(len(parts or [0]))
                clipped[part] += clip(one[part], R1 * share) / B
                raw[part] += clip(one[part], g_max * share) / B
        direction = clipped + clip(e, R2)
        if anti_windup:
            X = R2 / float(e.norm()) if e.any() else 1.0
            e = e * min(X, 1 - min(X, 1)) + raw - clipped
        else:
            e = e + raw - direction
        moved = weights(net) - lr * direction
        nn.utils.vector_to_parameters(moved, net.parameters())
    return net, e


@pytest.mark.parametrize("anti_windup", [False, True])
@pytest.mark.parametrize(("R1", "rho"), [(0.5, 1.0), (0.2, 3.0), (1.0, 0.3)])
def test_it_is_the_box_for_a_hundred_steps(R1, rho, anti_windup):
    data, g_max = batches(100), 8.0
    dice = Dice(0.0, bound=R1, feedback=rho, largest=g_max, anti_windup=anti_windup)
    net, dice = private(dice, data)
    twin, e = box(data, R1, rho * R1, g_max=g_max, anti_windup=anti_windup)
    torch.testing.assert_close(weights(net), weights(twin), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(flat(dice.state_dict()["error"]), e, rtol=1e-8, atol=1e-9)


def test_the_state_is_clipped_as_a_whole_also_where_rows_are_clipped_by_layer():
    data = batches(30)
    net, _ = private(Dice(0.0, bound=0.5, largest=math.inf), data, groups="layer")
    twin, _ = box(data, 0.5, 0.5, parts=[slice(0, 16), slice(16, 26)])
    torch.testing.assert_close(weights(net), weights(twin), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("pieces", [2, 4])
def test_micro_batches_are_one_batch(pieces):
    data = batches(20)
    whole, _ = private(Dice(0.7, bound=0.5, seed=3), data)
    split, _ = private(Dice(0.7, bound=0.5, seed=3), data, pieces=pieces)
    torch.testing.assert_close(weights(whole), weights(split), rtol=1e-9, atol=1e-9)


# -- identities ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [1e6, math.inf])
def test_a_bound_past_every_gradient_and_no_noise_is_sgd(bound):
    data = batches(20)
    net, dice = private(Dice(0.0, bound=bound), data)
    plain = model()
    for x in data:
        found = torch.autograd.grad(losses(plain, x).sum() / B, list(plain.parameters()))
        nn.utils.vector_to_parameters(weights(plain) - 0.1 * flat(found), plain.parameters())
    torch.testing.assert_close(weights(net), weights(plain), rtol=1e-9, atol=1e-9)
    assert not flat(dice.state_dict()["error"]).any()


@pytest.mark.parametrize("accounting", [None, "paper", "conservative"])
def test_without_feedback_it_is_dp_sgd(accounting):
    """To the last bit, noise included."""
    data = batches(20)
    net, _ = private(Dice(1.1, bound=0.5, feedback=0.0, accounting=accounting, seed=4), data)
    plain = model()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    with PerSample(plain, FlatClip(0.5), expected_batch=B) as rows:
        attach(optimizer, rows, Gaussian(1.1, seed=4))
        for x in data:
            rows.backward(losses(plain, x))
            optimizer.step()
            optimizer.zero_grad()
    assert torch.equal(weights(net), weights(plain))


def test_unbounded_feedback_gives_back_what_the_step_before_cut_off():
    dice = Dice(0.0, bound=1.0, feedback=math.inf)
    before = torch.zeros(12, dtype=torch.float64)
    for clipped, raw in stream(20):
        torch.testing.assert_close(release(dice, clipped, raw), clipped + before)
        before = raw - clipped


@pytest.mark.parametrize("anti_windup", [False, True])
def test_directions_add_up_to_the_gradients_less_the_error(anti_windup):
    dice, total = Dice(0.0, bound=1.0, anti_windup=anti_windup), torch.zeros(12).double()
    for clipped, raw in stream(50):
        total += release(dice, clipped, raw) - raw
    gap = float((total + error(dice)).norm())
    assert gap > 1.0 if anti_windup else gap < 1e-10  # the authors' variant loses some for good


def test_noise_is_no_part_of_the_error():
    noisy, clean = Dice(50.0, bound=1.0, seed=0), Dice(0.0, bound=1.0)
    for clipped, raw in stream(20):
        release(noisy, clipped, raw)
        release(clean, clipped, raw)
    assert torch.equal(error(noisy), error(clean))


@pytest.mark.parametrize("rho", [0.3, 1.0, 4.0])
def test_what_is_fed_back_is_bounded(rho):
    dice, reached = Dice(0.0, bound=1.0, feedback=rho), 0.0
    for clipped, raw in stream(50):
        reached = max(reached, float((release(dice, clipped, raw) - clipped).norm()))
    assert reached == pytest.approx(rho)
    windup = Dice(0.0, bound=1.0, feedback=rho, anti_windup=True)
    jump = max(float((raw - clipped).norm()) for clipped, raw in stream(50))
    for clipped, raw in stream(50):
        release(windup, clipped, raw)
        assert float(error(windup).norm()) <= rho + jump + 1e-9
    assert float(error(dice).norm()) > rho + jump or rho > 1


def test_an_empty_batch_still_acts():
    """||e|| = sqrt(12) = 3.46 is handed out in portions of R2 = 2."""
    dice, zero = Dice(0.0, bound=1.0, feedback=2.0), torch.zeros(12).double()
    assert not release(dice, zero, torch.ones(12).double()).any()
    for left in (math.sqrt(12) - 2, 0.0):
        e = error(dice)
        torch.testing.assert_close(release(dice, zero, zero), clip(e, 2.0))
        torch.testing.assert_close(error(dice), e - clip(e, 2.0))
        assert float(error(dice).norm()) == pytest.approx(left)
    assert Dice(1.0, bound=1.0).privatise(Clipped([zero], 1 / B, [zero.clone()])).tensors[0].all()


# -- state -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"accounting": "one-pass", "largest": 9.0}], ids=str)
def test_resumes(properties, options):
    def drive(dice: Dice) -> list[Tensor]:
        parts = [[torch.full((3, 4), v), torch.full((7,), -v)] for v in (0.1, 0.9)]
        return list(dice.privatise(Clipped(parts[0], 0.5 / B, parts[1])).tensors)

    properties.assert_resumes(lambda: Dice(1.1, bound=0.5, **options), drive)


def test_a_resumed_pass_is_neither_paid_again_nor_longer():
    first, second = (Dice(1.0, bound=1.0, accounting="one-pass", largest=4.0) for _ in range(2))
    zero = torch.zeros(12).double()
    release(first, zero, zero)
    second.load_state_dict(first.state_dict())
    assert second.charges(0.5) == []
    release(second, zero, zero)
    with pytest.raises(ValueError, match="covers 2 steps"):
        second.charges(0.5)


def test_the_state_is_marked_private_and_not_shared():
    dice = Dice(0.0, bound=1.0)
    for clipped, raw in stream(3):
        release(dice, clipped, raw)
    state = dice.state_dict()
    assert state["private"] is True
    kept = copy.deepcopy(state)
    for clipped, raw in stream(3):
        release(dice, clipped, raw)
    assert all(torch.equal(a, b) for a, b in zip(state["error"], kept["error"], strict=True))
    with pytest.raises(ValueError, match="not a saved state"):
        dice.load_state_dict(Gaussian(1.0).state_dict())


def test_resuming_without_the_error_goes_on_with_new_noise_and_the_old_count():
    dice = Dice(1.0, bound=1.0, seed=2, accounting="one-pass", largest=4.0)
    (clipped, raw), zero = stream(1)[0], torch.zeros(12).double()
    release(dice, clipped, raw)
    dice.reset()
    first, twin = release(dice, zero, zero), Dice(1.0, bound=1.0, seed=2)
    old, second = (release(twin, zero, zero) for _ in range(2))
    torch.testing.assert_close(first, second * math.hypot(1.0, 3.0))
    assert not torch.allclose(first, old * math.hypot(1.0, 3.0))
    assert not error(dice).any()
    with pytest.raises(ValueError, match="covers 2 steps"):
        dice.charges(0.5)
