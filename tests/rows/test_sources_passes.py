"""Public rows: passes, groups, filters behind them, and steps that must not happen."""

from __future__ import annotations

import math
import runpy
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from steelyard.filters.attach import attach
from steelyard.filters.chain import chain
from steelyard.filters.gaussian import Gaussian
from steelyard.plans.privacy import plan_privacy
from steelyard.rows.per_sample import PerSample
from steelyard.rows.sources import PublicRows
from steelyard.runs.ledger import Ledger
from steelyard.types import Noised
from steelyard.weightings.clip import FlatClip
from steelyard.weightings.coupling import ConstantWeight, CosineWeight, OptimalWeight

coupled = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("coupled.py"))))
B, R, SIGMA, OPTIMIZERS = coupled.B, coupled.R, coupled.SIGMA, coupled.OPTIMIZERS
Run, LowPass = coupled.Run, coupled.LowPass
batch, losses, same = coupled.batch, coupled.losses, coupled.same


def public_mean(run: Any) -> list[Tensor]:
    """What is added to the private gradient at alpha = 1."""
    zero = [torch.zeros_like(p) for p in run.net.parameters()]
    return list(run.public.filter(Noised(zero, R / B, SIGMA)).tensors)


@pytest.mark.parametrize("groups", ["all", "layer"])
def test_public_rows_are_clipped_as_private_ones(groups):
    run, x = Run(ConstantWeight(1.0), groups=groups), 3 * batch(0, 1, 4)
    run.rows.backward(losses(run.net, x))
    private = run.rows.take().tensors
    run.public.backward(losses(run.net, x))
    for a, b in zip(public_mean(run), private, strict=True):
        torch.testing.assert_close(a, b * B / 4)


def test_both_forwards_may_come_before_both_backwards():
    run, x_pub, x = Run(ConstantWeight(1.0)), batch(0, 1, 3), batch(0, 2, 5)
    for _ in range(5):  # past the first batches, which are proved on
        both = losses(run.net, x_pub), losses(run.net, x)
        run.public.backward(both[0])
        run.rows.backward(both[1])
        public, private = public_mean(run), list(run.rows.take().tensors)
        run.public.backward(losses(run.net, x_pub))
        run.rows.backward(losses(run.net, x))
        assert same(public, public_mean(run))
        assert same(private, list(run.rows.take().tensors))


def test_public_rows_are_evaluated_where_private_ones_are():
    class Points:
        def evaluations(self):
            return [(0.5, nullcontext()), (0.5, nullcontext())]

    run, x = Run(ConstantWeight(1.0)), batch(0, 1, 3)
    run.public.backward(losses(run.net, x))
    expected = public_mean(run)
    run.rows.points = Points()
    run.public.backward(lambda: losses(run.net, x))
    assert run.public.count == 3  # two evaluations, one batch
    for a, b in zip(public_mean(run), expected, strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(ValueError, match="a function"):
        run.public.backward(losses(run.net, x))


def test_a_filter_behind_remembers_the_combined_gradient():
    plain, smooth = Run(ConstantWeight(0.5)), Run(ConstantWeight(0.5), LowPass())
    memory = [torch.zeros_like(p) for p in plain.net.parameters()]
    for _ in range(4):
        for one, other in zip(plain.net.parameters(), smooth.net.parameters(), strict=True):
            one.data.copy_(other)  # both see the same gradients
        plain.step()
        smooth.step()
        for k, (p, q) in enumerate(
            zip(plain.net.parameters(), smooth.net.parameters(), strict=True)
        ):
            memory[k] = memory[k] / 2 + p.grad / 2
            torch.testing.assert_close(q.grad, memory[k], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("weight", [lambda: CosineWeight(5), OptimalWeight])
def test_resumes(properties, weight, optimizer):
    properties.assert_resumes(lambda: Run(weight(), LowPass(), optimizer=optimizer), Run.step)


# -- steps that must not happen ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight", "why"),
    [(ConstantWeight(0.3), "counts with alpha 0.3"), (OptimalWeight(), "spread is to be measured")],
)
def test_a_step_without_public_rows_raises_and_changes_nothing(weight, why):
    ledger = Ledger(plan_privacy(n=40, batch=4, steps=3, noise_multiplier=SIGMA, accountant="rdp"))
    run = Run(weight, ledger=ledger)
    run.step()
    before = run.weights()
    run.rows.backward(losses(run.net, batch(0, 2, 5)))
    with pytest.raises(RuntimeError, match=rf"no public\.backward.*{why}.*call it before"):
        run.optimizer.step()
    assert same(before, run.weights())
    assert all(p.grad is None for p in run.net.parameters())
    assert ledger.steps == 2  # paid for, as its noise was drawn
    assert not same(before, run.step())


def test_public_rows_that_are_not_finite_are_refused_and_forgotten():
    run = Run(ConstantWeight(0.3))
    before = run.weights()
    run.public.backward(losses(run.net, batch(0, 1, 3) * math.nan))
    run.rows.backward(losses(run.net, batch(0, 2, 5)))
    with pytest.raises(FloatingPointError, match="a public sample's gradient is not finite"):
        run.optimizer.step()
    assert same(before, run.weights())
    assert all(bool(p.isfinite().all()) for p in run.step())


def test_losses_that_no_row_can_come_from_are_refused_and_forgotten():
    run = Run(ConstantWeight(0.3))
    run.public.backward(losses(run.net, batch(0, 1, 3)))
    with pytest.raises(ValueError, match=r"losses must have shape \[B\]"):
        run.public.backward(losses(run.net, batch(0, 1, 3)).mean())
    assert run.public.count == 0


def test_the_rows_of_two_steps_do_not_pass_for_those_of_one():
    run = Run(ConstantWeight(0.3), batch=4)
    run.public.backward(losses(run.net, batch(0, 1, 3)))
    with pytest.raises(RuntimeError, match=r"6 public rows.*batch=4.*step left out"):
        run.public.backward(losses(run.net, batch(0, 1, 3)))
    run.step()


def test_an_empty_public_batch_is_none():
    run = Run(ConstantWeight(0.3))
    run.public.backward(losses(run.net, batch(0, 1, 0)))
    run.rows.backward(losses(run.net, batch(0, 2, 5)))
    with pytest.raises(RuntimeError, match=r"no public\.backward"):
        run.optimizer.step()


def test_public_rows_of_other_private_rows_are_refused():
    run = Run(ConstantWeight(0.3))
    rows = PerSample(run.net, FlatClip(R), expected_batch=B)
    with pytest.raises(ValueError, match="made with other private rows"):
        attach(run.optimizer, rows, chain(Gaussian(1.0), run.public))


def test_the_state_of_another_weight_is_refused():
    state = Run(ConstantWeight(0.3)).public.state_dict()
    with pytest.raises(ValueError, match="is a ConstantWeight, this one a CosineWeight"):
        Run(CosineWeight(5)).public.load_state_dict(state)


def test_a_weight_out_of_range_is_refused():
    class Wrong:
        metric = None

        def alpha(self, known):
            return 1.5

    with pytest.raises(ValueError, match=r"found 1\.5"):
        Run(Wrong()).step()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip": "flat"}, "unknown clipping of public rows 'flat': choose same or none"),
        ({"clip": "none", "scale": 0.0}, "scale of public rows must be positive, found 0"),
        ({"scale": 0.5}, r"scale 0\.5 would undo that"),
        ({"batch": 0}, "public batch size must be positive, found 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, message):
    rows = Run(ConstantWeight(0.0)).rows
    with pytest.raises(ValueError, match=message):
        PublicRows(rows, ConstantWeight(0.5), **options)
