"""Error feedback: the noise of each accounting mode, what a ledger is charged, what is refused."""

from __future__ import annotations

import math
import runpy
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from steelyard.filters.attach import attach
from steelyard.filters.chain import chain
from steelyard.filters.dice import Dice
from steelyard.plans.feedback import MODES, SAMPLING, noise_for
from steelyard.plans.privacy import plan_privacy
from steelyard.rows.per_sample import PerSample
from steelyard.runs.ledger import BudgetExceeded, Ledger
from steelyard.types import Clipped
from steelyard.weightings.clip import AutoClip, FlatClip

runs = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("dice_runs.py"))))
B, SIZES, model, losses, batches = runs.B, runs.SIZES, runs.model, runs.losses, runs.batches


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


# -- noise and accounting --------------------------------------------------------------------------


REACH = {None: 1.0, "paper": 3.0, "one-pass": math.sqrt(26) / 2, "conservative": math.hypot(1, 24)}


@pytest.mark.parametrize("mode", REACH)
def test_the_noise_is_the_mode_s_and_the_record_says_so(mode):
    """rho = 2, R1 = 0.5, g_max = 1.75, B = 6; 40,000 numbers: 5 standard deviations are 1.8 %."""
    sigma, R1 = 1.3, 0.5
    largest = R1 * (1 + math.sqrt(REACH["one-pass"] ** 2 - 1))
    dice = Dice(sigma, bound=R1, feedback=2.0, accounting=mode, largest=largest, seed=1)
    signal = torch.full((40_000,), 2.0, dtype=torch.float64)
    released = dice.privatise(Clipped([signal.clone()], R1 / B, [signal.clone()]))
    assert (dice.noise_multiplier, released.noise_multiplier) == (sigma, sigma)
    std = released.sensitivity * released.noise_multiplier
    assert std == pytest.approx(sigma * REACH[mode] * R1 / B)
    found = float((released.tensors[0] - 2.0).square().mean().sqrt())
    assert found == pytest.approx(std, rel=0.018)
    assert not dice.state_dict()["error"][0].any()


def test_no_mode_no_ledger():
    dice = Dice(1.0, bound=0.5)
    with pytest.raises(ValueError, match="paper, one-pass, conservative"):
        dice.charges(0.1)
    ledger = Ledger(plan_privacy(n=60, batch=B, steps=5, noise_multiplier=1.0, accountant="rdp"))
    with pytest.raises(ValueError, match="is not DP-SGD"):
        private(dice, batches(1), ledger=ledger)
    assert ledger.steps == 0
    assert (dice.sampling, dice.assumption) == (None, None)


def test_paper_charges_the_plan_s_own_noise():
    plan = plan_privacy(n=60, batch=B, steps=8, epsilon=3.0, accountant="rdp")
    ledger = Ledger(plan)
    dice = Dice(plan.noise_multiplier, bound=0.5, accounting="paper")
    private(dice, batches(8), ledger=ledger)
    assert ledger.epsilon() == plan.epsilon
    assert ledger.report()["sigma"] == plan.noise_multiplier
    with pytest.raises(BudgetExceeded):  # the plan's tolerance leaves no room for four
        private(dice, batches(4), ledger=ledger)


def test_one_pass_pays_once_and_stops():
    """Ten steps are one pass, and the ledger counts one Gaussian."""
    sigma = noise_for("one-pass", n=60, batch=B, epsilon=2.0, accountant="rdp")
    plan = plan_privacy(
        n=60, batch=B, steps=10, epsilon=2.0, sampling="unamplified", accountant="rdp"
    )
    ledger = Ledger(plan)
    dice = Dice(sigma, bound=0.5, accounting="one-pass", largest=4.0)
    private(dice, batches(10), ledger=ledger)
    alone = plan_privacy(n=60, batch=60, steps=1, noise_multiplier=sigma, accountant="rdp")
    assert ledger.epsilon() == pytest.approx(alone.epsilon)
    before = ledger.state_dict()
    with pytest.raises(ValueError, match="covers 10 steps"):
        private(dice, batches(1), ledger=ledger)
    assert ledger.state_dict() == before
    assert dice.sampling == "unamplified"


def test_conservative_fills_the_budget_exactly():
    setting = {"n": 60, "batch": B, "steps": 8, "epsilon": 3.0, "accountant": "rdp"}
    ledger = Ledger(plan_privacy(**setting))
    dice = Dice(noise_for("conservative", **setting), bound=0.5, accounting="conservative")
    private(dice, batches(8), ledger=ledger)
    assert 2.97 < ledger.epsilon() <= 3.0
    with pytest.raises(BudgetExceeded):
        private(dice, batches(1), ledger=ledger)
    wrong = Dice(plan_privacy(**setting).noise_multiplier, bound=0.5, accounting="conservative")
    with pytest.raises(BudgetExceeded):  # DP-SGD's noise does not pay for it
        private(wrong, batches(8), ledger=Ledger(plan_privacy(**setting)))


@pytest.mark.parametrize("mode", MODES)
def test_in_a_chain_it_is_charged_the_same(mode):
    dice = Dice(1.5, bound=0.5, accounting=mode, largest=2.0)
    plan = plan_privacy(
        n=60, batch=B, steps=9, noise_multiplier=1.5, accountant="rdp", sampling=SAMPLING[mode]
    )
    ledger = Ledger(plan)
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with PerSample(net, FlatClip(0.5), expected_batch=B) as rows:
        attach(optimizer, rows, chain(dice), ledger=ledger)
        paid = dice.charges(0.1)
        rows.backward(losses(net, batches(1)[0]))
        optimizer.step()
    assert ledger.steps == len(paid) == (2 if mode == "conservative" else 1)


@pytest.mark.parametrize(("mode", "other"), [("one-pass", "poisson"), ("paper", "unamplified")])
def test_a_plan_for_other_batches_is_refused(mode, other):
    plan = plan_privacy(
        n=60, batch=B, steps=9, noise_multiplier=1.5, accountant="rdp", sampling=other
    )
    dice = Dice(1.5, bound=0.5, accounting=mode, largest=2.0)
    with pytest.raises(
        ValueError, match=f"{SAMPLING[mode]} sampling, the ledger's plan for {other}"
    ):
        private(dice, batches(1), ledger=Ledger(plan))


def test_the_ledger_says_what_the_guarantee_rests_on():
    ledger = Ledger(plan_privacy(n=60, batch=B, steps=9, epsilon=3.0, accountant="rdp"))
    dice = Dice(ledger.plan.noise_multiplier, bound=0.5, accounting="paper")
    private(dice, batches(1), ledger=ledger)
    assert dice.assumption in ledger.report()["assumptions"]


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"bound": 0.0}, "positive"),
        ({"bound": 1.0, "feedback": -1.0}, "0 or positive"),
        ({"bound": 1.0, "feedback": math.nan}, "0 or positive"),
        ({"bound": 1.0, "accounting": "dp-sgd"}, "paper, one-pass, conservative"),
        ({"bound": 1.0, "accounting": "one-pass"}, "largest=g_max"),
        ({"bound": 1.0, "accounting": "one-pass", "largest": math.inf}, "g_max"),
        ({"bound": 1.0, "accounting": "paper", "feedback": math.inf}, "finite"),
        ({"bound": 1.0, "largest": 0.5}, "at least the bound"),
        (
            {"bound": 1.0, "accounting": "one-pass", "largest": 2.0, "anti_windup": True},
            "without anti_windup",
        ),
    ],
    ids=str,
)
def test_bad_settings_are_refused_in_one_line(options, match):
    with pytest.raises(ValueError, match=match) as caught:
        Dice(1.0, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("weighting", "match"),
    [(AutoClip(0.5), "flat clipping, found AutoClip"), (FlatClip(0.4), "clip at 0.4, .* at 0.5")],
    ids=str,
)
def test_rows_that_do_not_fit_are_refused(weighting, match):
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with PerSample(net, weighting, expected_batch=B) as rows:
        with pytest.raises(ValueError, match=match):
            attach(optimizer, rows, Dice(1.0, bound=0.5))
        assert rows.raw_bound is None


def test_without_raw_sums_it_says_what_to_do():
    with pytest.raises(ValueError, match="no raw sums"):
        Dice(1.0, bound=1.0).privatise(Clipped([torch.zeros(3)], 0.1))


def test_a_row_that_is_not_finite_does_not_reach_the_error():
    dice, data = Dice(0.0, bound=0.5), batches(1)
    data[0][0, 0] = math.nan
    with pytest.raises(FloatingPointError):
        private(dice, data)
    assert dice.state_dict()["error"] == []


def test_a_huge_row_fills_the_error_up_to_the_largest_only():
    """By default g_max = 100 R1 = 50."""
    _, dice = private(Dice(0.0, bound=0.5), [batches(1)[0][:1] * 1e6])
    left = math.hypot(*(float(t.norm()) for t in dice.state_dict()["error"]))
    assert left * B == pytest.approx(50 - 0.5)


def test_half_precision_parameters_keep_the_error_in_float32():
    net = model().bfloat16()
    optimizer, dice = torch.optim.SGD(net.parameters(), lr=0.1), Dice(0.0, bound=0.5)
    with PerSample(net, FlatClip(0.5), expected_batch=B) as rows:
        attach(optimizer, rows, dice)
        rows.backward(losses(net, batches(1)[0].bfloat16()).float())
        optimizer.step()
    assert {t.dtype for t in dice.state_dict()["error"]} == {torch.float32}
