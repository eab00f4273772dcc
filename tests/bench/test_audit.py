"""The audit as a whole: silent about a right engine, loud about a broken one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from steelyard.bench.audit import AuditConfig, AuditResult, Understated, audit, together
from steelyard.bench.lower_bound import Count
from steelyard.data import Table
from steelyard.filters.gaussian import Gaussian
from steelyard.types import Clipped
from steelyard.weightings.clip import FlatClip

# 6,000 canaries and 100 steps in half a second: next to nothing but canaries takes part
TINY = AuditConfig(model="mlp", canaries=6000, steps=100, batch=150, clip="flat:0.5")


@pytest.fixture
def run(tiny_table: Table) -> Callable[..., AuditResult]:
    def audited(config: AuditConfig = TINY, /, **options) -> AuditResult:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return audit(config, table=tiny_table, **options)
        finally:
            torch.set_num_threads(threads)

    return audited


def changed(**changes: object) -> AuditConfig:
    return AuditConfig(**{**TINY.__dict__, **changes})


# -- a right engine --------------------------------------------------------------------------


def test_a_right_engine_is_not_refuted_and_shows_what_its_claim_shows(run):
    for seed in range(3):
        result = run(changed(seed=seed))
        assert result.n == 96 + 6000
        assert 2.95 < result.claimed_epsilon <= 3
        assert not result.refuted
        assert result.expected is not None
        assert 0.4 < result.bound.epsilon < 1.2  # no blunt instrument either
        assert abs(result.bound.epsilon - result.expected) < 0.4
        assert result.bound.epsilon < result.ceiling


def test_clipping_groups_are_audited_as_sharply(run):
    layers = changed(groups="layer")
    result = run(layers)
    assert not result.refuted
    assert result.expected is not None
    assert result.bound.epsilon > 0.3
    assert abs(result.bound.epsilon - result.expected) < 0.4
    assert run(layers, weighting=WholeBoundEach(0.5)).refuted


def test_the_same_seed_gives_the_same_audit_and_steps_are_counted(run):
    small = changed(canaries=200, steps=6)
    steps: list[int] = []
    first, second = run(small, on_step=steps.append), run(small)
    assert steps == [1, 2, 3, 4, 5, 6]
    assert (first.counts, first.test) == (second.counts, second.test)
    assert run(changed(canaries=200, steps=6, seed=1)).counts != first.counts


def test_a_mechanism_of_ones_own_is_given_the_planned_noise(run):
    seen: list[float] = []

    def make(sigma: float) -> Gaussian:
        seen.append(sigma)
        return Gaussian(sigma, seed=5)

    result = run(changed(canaries=64, steps=3), mechanism=make)
    assert seen == [result.noise_multiplier]


# -- planted bugs ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Late(FlatClip):
    """Clips at twice the bound that it declares."""

    def __call__(self, norms: Tensor) -> Tensor:
        return (2 * self.bound / norms).clamp(max=1.0)


@dataclass(frozen=True)
class WholeBoundEach(FlatClip):
    """Every clipping group gets the whole bound instead of its share."""

    def with_bound(self, bound: float) -> FlatClip:
        return FlatClip(self.bound)


@dataclass(frozen=True)
class Unclipped(FlatClip):
    def __call__(self, norms: Tensor) -> Tensor:
        return torch.ones_like(norms)


@dataclass(frozen=True)
class OneGroupUnclipped(FlatClip):
    """Hands out right rules, but for the group with the canaries' table."""

    groups: tuple[type[FlatClip], ...] = (FlatClip, Unclipped, FlatClip)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rest", iter(self.groups))

    def with_bound(self, bound: float) -> FlatClip:
        return next(self.rest)(bound)  # pyright: ignore[reportAttributeAccessIssue]


def test_half_the_noise_is_found(run):
    result = run(changed(break_noise=0.5))
    assert 2.95 < result.claimed_epsilon <= 3  # the ledger was told the whole
    assert result.refuted


def test_a_quarter_of_the_noise_is_found_near_the_ceiling(run):
    result = run(changed(break_noise=0.25))
    assert result.refuted
    assert result.bound.epsilon > 4.5


def test_a_rule_that_clips_at_twice_its_bound_is_found(run):
    assert run(weighting=Late(0.5)).refuted


def test_one_layer_left_unclipped_is_found(run):
    config = changed(groups="tables.*")
    assert not run(config, weighting=OneGroupUnclipped(0.5, (FlatClip,) * 3)).refuted
    result = run(config, weighting=OneGroupUnclipped(0.5))
    assert result.refuted
    assert result.bound.epsilon > 4.5


def test_no_clipping_at_all_is_found(run):
    assert run(weighting=Unclipped(0.5)).refuted


def test_input_canaries_find_what_a_model_without_noise_learnt_by_heart(run):
    """96 rows are few: 48 canaries, trained until the wrong labels are known."""
    learnt = changed(mode="input", canaries=48, steps=300, batch=48, lr=1.0)
    right = run(learnt)
    assert not right.refuted
    assert right.expected is None
    broken = run(changed(**{**learnt.__dict__, "break_noise": 0.001, "epsilon": 0.5}))
    assert broken.refuted


def test_the_deliberately_broken_mechanism_adds_its_part_and_claims_the_whole():
    broken = Understated(2.0, 0.25, seed=0)
    released = broken.privatise(Clipped([torch.zeros(40_000)], 0.5))
    assert broken.noise_multiplier == released.noise_multiplier == 2.0
    assert float(released.tensors[0].std()) == pytest.approx(0.25, rel=0.02)
    twin = Understated(2.0, 0.25)
    twin.load_state_dict(broken.state_dict())
    draws = [m.privatise(Clipped([torch.zeros(9)], 0.5)).tensors[0] for m in (broken, twin)]
    assert torch.equal(*draws)


# -- several seeds, and bad settings ---------------------------------------------------------


def test_seeds_are_pooled_and_other_settings_are_not(run):
    results = [run(changed(seed=seed, break_noise=0.5)) for seed in range(3)]
    bound = together(results)
    assert bound.epsilon > min(r.bound.epsilon for r in results)
    assert isinstance(bound.count, Count)
    assert bound.count.guesses in {3 * c.guesses for c in results[0].counts}
    with pytest.raises(ValueError, match="seed"):
        together([results[0], run(changed(canaries=64, steps=2))])


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"mode": "inptu"}, "'inptu'"),
        ({"epsilon": 0.0}, "epsilon"),
        ({"delta": 1.0}, "delta"),
        ({"confidence": 1.0}, "confidence"),
        ({"canaries": 15}, "15"),
        ({"ordinary": 0}, "ordinary"),
        ({"seed": -1}, "seed"),
        ({"break_noise": 0.0}, "break-noise"),
        ({"batch": 0}, "batch"),
    ],
)
def test_bad_settings_are_refused_in_one_line(wrong, named):
    with pytest.raises(ValueError, match=named) as caught:
        AuditConfig(**wrong)
    assert "\n" not in str(caught.value)


def test_a_rule_without_a_bound_is_refused(run):
    with pytest.raises(ValueError, match="bounds nothing"):
        run(changed(clip="flat:inf"))


# -- the promise -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_five_seeds_never_pass_the_claim_and_broken_noise_always_does():
    """The defaults: a CNN on 12,000 images."""
    for seed in range(5):
        right = audit(AuditConfig(seed=seed))
        assert right.bound.epsilon <= right.claimed_epsilon
        assert right.test["accuracy"] > 0.7
        broken = audit(AuditConfig(seed=seed, break_noise=0.25))
        assert broken.bound.epsilon > broken.claimed_epsilon / 2
        assert broken.refuted
