"""The identities of DOPPLER, its slow twin, and what it does inside a private step."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from steelyard.filters.doppler import Doppler
from steelyard.types import Noised

AUTHORS = ([1.6332e-4, 3.2665e-4, 1.6332e-4], [1.0, -1.98342955, 0.98549544])
FILTERS = {  # b, a
    "first order": ([0.1], [1.0, -0.9]),
    "two direct terms": ([0.05, 0.05], [1.0, -0.9]),
    "negative b": ([0.15, -0.05], [1.0, -0.9]),
    "authors' default": AUTHORS,
    "cascade": ([0.04], [1.0, -1.6, 0.64]),
    "moving average": ([0.25, 0.25, 0.25, 0.25], [1.0]),
    "na > nb": ([0.2, 0.1], [1.0, -0.9, 0.3, -0.1]),
    "nb > na": ([0.2, 0.1, 0.1, 0.1], [1.0, -0.5]),
    "gain 5": ([0.5], [1.0, -0.9]),
    "leading 2": ([0.2], [2.0, -1.8]),
}
every_filter = pytest.mark.parametrize("name", FILTERS)


def made(name: str) -> Doppler:
    return Doppler(*FILTERS[name], gain="corrected")


def released(*tensors: Tensor) -> Noised:
    return Noised([t.clone() for t in tensors], 0.5, 1.2)


def outputs(one: Doppler, stream: Sequence[Tensor]) -> Tensor:  # [T, ...]
    return torch.stack([one.filter(released(x)).tensors[0].clone() for x in stream])


def slow(b: Sequence[float], a: Sequence[float], stream: Sequence[float]) -> list[float]:
    """The card's box for one number, with whole histories: m_t, corr_t, m_t / corr_t."""
    b, a = [x / a[0] for x in b], [x / a[0] for x in a]
    m: list[float] = []
    corr: list[float] = []
    out: list[float] = []
    for t in range(len(stream)):
        new_m, new_corr = 0.0, 0.0
        for k in range(1, len(a)):
            if t - k >= 0:
                new_m -= a[k] * m[t - k]
                new_corr -= a[k] * corr[t - k]
        for k in range(len(b)):
            if t - k >= 0:
                new_m += b[k] * stream[t - k]
                new_corr += b[k]
        m.append(new_m)
        corr.append(new_corr)
        out.append(new_m / new_corr)
    return out


# -- the paper's filter --------------------------------------------------------------------------


@every_filter
def test_equals_the_slow_version_for_a_hundred_steps(name):
    stream = torch.randn(100, 3, dtype=torch.float64)
    found = outputs(made(name), stream)
    for at in range(3):
        expected = torch.tensor(slow(*FILTERS[name], stream[:, at].tolist()), dtype=torch.float64)
        torch.testing.assert_close(found[:, at], expected, rtol=1e-9, atol=1e-11)


@every_filter
def test_a_constant_passes_from_the_first_step_on(name):
    constant = torch.tensor([3.7, -0.2], dtype=torch.float64)
    found = outputs(made(name), [constant] * 400)
    assert float((found / constant - 1).abs().max()) < 1e-12


@every_filter
def test_float32_stays_close_to_float64(name):
    stream = torch.randn(600, 50, dtype=torch.float64) + 0.1
    exact = outputs(made(name), stream)
    single = outputs(made(name), stream.float())
    assert single.dtype == torch.float32
    assert float((single - exact).norm() / exact.norm()) < 1e-3


def test_linear():
    one, other = torch.randn(2, 60, 4, dtype=torch.float64)
    for name in FILTERS:
        parts = outputs(made(name), one) + 2.5 * outputs(made(name), other)
        torch.testing.assert_close(
            outputs(made(name), one + 2.5 * other), parts, rtol=1e-10, atol=1e-12
        )


def test_first_order_is_momentum_with_dampening_from_zeros_and_adams_first_moment():
    beta, stream = 0.9, torch.randn(40, 5, dtype=torch.float64)
    found = outputs(Doppler.first_order(beta), stream)
    p, q = (nn.Parameter(torch.zeros(5, dtype=torch.float64)) for _ in range(2))
    sgd = torch.optim.SGD([p], lr=1.0, momentum=beta, dampening=beta)
    sgd.state[p]["momentum_buffer"] = torch.zeros_like(p)
    adam = torch.optim.Adam([q], lr=1.0, betas=(beta, 0.999))
    for t, g in enumerate(stream):
        p.grad, q.grad = g.clone(), g.clone()
        sgd.step()
        adam.step()
        correction = 1 - beta ** (t + 1)
        torch.testing.assert_close(found[t], sgd.state[p]["momentum_buffer"] / correction)
        torch.testing.assert_close(found[t], adam.state[q]["exp_avg"] / correction)


@pytest.mark.parametrize(
    ("name", "noise_gain", "gain"),
    [
        ("negative b", 0.0605, 1.0),
        ("authors' default", 0.00712, 0.316),
        ("first order", 0.0526, 1.0),
        ("two direct terms", 0.0500, 1.0),
    ],
)
def test_the_table_of_gains_and_the_noise_that_is_left(name, noise_gain, gain):
    one = made(name)
    assert one.noise_gain == pytest.approx(noise_gain, abs=5e-6 if noise_gain < 0.01 else 5e-5)
    assert one.dc_gain == pytest.approx(gain, abs=5e-4)
    assert one.noise_left == pytest.approx(one.noise_gain / one.dc_gain**2)
    tail = outputs(one, torch.randn(1200, 4000))[-1]  # settled: 4000 independent numbers
    ratio = float(tail.square().mean()) / one.noise_left
    assert abs(ratio - 1) < 5 * math.sqrt(2 / 4000)


# -- how it behaves in a program -----------------------------------------------------------------


@pytest.mark.parametrize("nothing", [Doppler.first_order(0), Doppler([1]), Doppler([3.0, 0], [3])])
def test_no_filter_hands_on_the_same_tensors(nothing):
    gradient = released(torch.randn(3), torch.randn(2, 2))
    versions = [t._version for t in gradient.tensors]
    assert nothing.filter(gradient) is gradient
    assert [t._version for t in gradient.tensors] == versions
    assert nothing.order == 0
    assert nothing.describe() == "no filter"


@every_filter
def test_changing_what_was_released_does_not_reach_the_memory(name):
    stream = torch.randn(20, 6, dtype=torch.float64)
    one, found = made(name), []
    for x in stream:
        (out,) = one.filter(released(x)).tensors
        found.append(out.clone())
        out.fill_(torch.nan)
    torch.testing.assert_close(torch.stack(found), outputs(made(name), stream), rtol=0, atol=0)


@every_filter
def test_half_precision_gradients_are_remembered_in_float32(name):
    """A buffer in bfloat16 would not see increments of 0.1 * 0.01."""
    half, single = made(name), made(name)
    for t in range(60):
        x = (1.0 + 0.01 * torch.randn(4, generator=torch.Generator().manual_seed(t))).bfloat16()
        (out,) = half.filter(released(x)).tensors
        (sharp,) = single.filter(released(x.float())).tensors
        assert out.dtype == torch.bfloat16
        assert torch.equal(out, sharp.bfloat16())
    one, other = half.state_dict()["memory"], single.state_dict()["memory"]
    assert len(one) == max(len(half.a), len(half.b)) - 1
    for (s,), (r,) in zip(one, other, strict=True):
        assert s.dtype == torch.float32
        assert torch.equal(s, r)


def test_mixed_precision_and_scalars():
    one = Doppler.cascade(0.5, 2)
    tensors = [torch.ones((), dtype=torch.float64), torch.ones(2, 0), torch.ones(3).half()]
    for _ in range(3):
        found = one.filter(released(*tensors)).tensors
        for a, b in zip(found, tensors, strict=True):
            torch.testing.assert_close(a, b)
    assert one.filter(Noised([], 1.0, 1.0)).tensors == []


@every_filter
def test_resumes(properties, name):
    class Driver:
        def __init__(self) -> None:
            self.one, self.t = made(name), 0

        def drive(self) -> list[Tensor]:
            torch.manual_seed(self.t)
            self.t += 1
            return [t.clone() for t in self.one.filter(released(torch.randn(4, 2))).tensors]

        def state_dict(self):
            return {"t": self.t, "one": self.one.state_dict()}

        def load_state_dict(self, state):
            self.t = state["t"]
            self.one.load_state_dict(state["one"])

    properties.assert_resumes(Driver, Driver.drive)


def test_a_state_is_a_copy_both_ways():
    one, other = Doppler.cascade(0.8, 2), Doppler.cascade(0.8, 2)
    one.filter(released(torch.ones(3)))
    state = one.state_dict()
    before = copy.deepcopy(state)
    other.load_state_dict(state)
    for f in (one, other):
        f.filter(released(torch.randn(3)))
    assert all(
        torch.equal(a, b) for a, b in zip(state["memory"][0], before["memory"][0], strict=True)
    )


def test_reset_begins_anew():
    one, x = Doppler.cascade(0.9, 2), torch.randn(5)
    outputs(one, torch.randn(30, 5))
    one.reset()
    torch.testing.assert_close(one.filter(released(x)).tensors[0], x)
    one.reset()
    one.filter(released(torch.zeros(2, 2)))  # another model


def test_a_filter_too_slow_for_the_run_is_named():
    assert Doppler.first_order(0.9).check_length(380) is None  # 38 steps to settle
    said = Doppler.first_order(0.9).check_length(379)
    assert said is not None
    assert "38 steps" in said
    assert Doppler.first_order(0).check_length(1) is None
    assert "order 2" in Doppler(*AUTHORS, gain="corrected").describe()


def test_refuses_other_states_and_other_parameters():
    one = Doppler.first_order(0.9)
    one.filter(released(torch.ones(3)))
    for state, words in [
        (Doppler.first_order(0.8).state_dict(), "b = .0.1.*make Doppler"),
        (Doppler([0.15, -0.05], [1, -0.9]).state_dict(), "make Doppler"),
        ({"kind": "average"}, "not a saved state of Doppler"),
        ([], "not a saved state"),
        ({**one.state_dict(), "kind": "disk"}, "not a saved state"),
    ]:
        with pytest.raises(ValueError, match=words):
            Doppler.first_order(0.9).load_state_dict(state)  # type: ignore[arg-type]
    before = one.state_dict()
    with pytest.raises(ValueError, match=r"remembers 1 tensors \(\[3\]\).*reset"):
        one.filter(released(torch.ones(4)))
    assert before["corr"] == one.state_dict()["corr"]  # the clock did not move


def test_the_record_is_that_of_the_noise():
    found = Doppler.first_order(0.9).filter(released(torch.ones(2)))
    assert (found.sensitivity, found.noise_multiplier) == (0.5, 1.2)
    file = io.BytesIO()
    torch.save(Doppler.cascade(0.5, 3).state_dict(), file)  # plain data
    file.seek(0)
    assert torch.load(file, weights_only=True)["kind"] == "doppler"
