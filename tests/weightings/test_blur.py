"""The card's identities, and the naive projection; the optimizer's metric: tests/rows."""

from __future__ import annotations

import pytest
import torch

from steelyard.weightings.blur import Blur


def rows(seed=0, d=30):
    """(r, f), of different sizes."""
    g = torch.Generator().manual_seed(seed)
    r = torch.randn(d, dtype=torch.float64, generator=g)
    f = torch.randn(d, dtype=torch.float64, generator=g) + (seed % 3 - 1) * r
    return r, 0.3 * f


def step(blur, r, f):
    g = torch.stack([r, f])
    return blur(g @ g.T) @ g


def naive(r, f, gamma=1.0):
    """The paper's box, one number at a time."""
    inner = sum(float(a) * float(b) for a, b in zip(f, r, strict=True))
    square = sum(float(a) ** 2 for a in f)
    u = [gamma * float(a) + float(b) - inner / square * float(a) for a, b in zip(f, r, strict=True)]
    return torch.tensor(u, dtype=torch.float64)


@pytest.mark.parametrize("gamma", [0.0, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("seed", range(6))
def test_identities_on_random_gradients(seed, gamma):
    r, f = rows(seed)
    u = step(Blur(gamma), r, f)
    torch.testing.assert_close(u, naive(r, f, gamma), rtol=1e-9, atol=1e-9)
    assert float(f @ u) == pytest.approx(gamma * float(f @ f), abs=1e-9)
    assert float((u - gamma * f) @ f) == pytest.approx(0, abs=1e-9)


def test_parallel_and_orthogonal_rows():
    r, f = rows(1)
    torch.testing.assert_close(step(Blur(0.7), -2.5 * f, f), 0.7 * f)
    across = r - (r @ f) / (f @ f) * f
    torch.testing.assert_close(step(Blur(0.7), across, f), 0.7 * f + across)


@pytest.mark.parametrize("k", [1e-3, 7.0, 1e4])
def test_what_scaling_a_loss_does(k):
    r, f = rows(2)
    projected = step(Blur(0.0), r, f)
    torch.testing.assert_close(step(Blur(0.5), k * r, f), 0.5 * f + k * projected)
    torch.testing.assert_close(step(Blur(0.5), r, k * f), 0.5 * k * f + projected)
    unit = step(Blur(0.5, norm="unit"), r, f)
    torch.testing.assert_close(step(Blur(0.5, norm="unit"), k * r, f), unit)
    torch.testing.assert_close(step(Blur(0.5, norm="unit"), r, k * f), unit)
    torch.testing.assert_close(unit, naive(r / r.norm(), f / f.norm(), 0.5))


@pytest.mark.parametrize("seed", range(6))
def test_swapped_one_sided(seed):
    r, f = rows(seed)
    swapped = step(Blur(0.6, lower="retain"), r, f)
    torch.testing.assert_close(swapped, naive(f, r, 0.6))
    assert float(r @ swapped) == pytest.approx(0.6 * float(r @ r), rel=1e-9)
    names = ["forget", "retain"]  # by name, in whatever order the rows come
    g = torch.stack([f, r])
    u = Blur(0.6, lower="retain").given(names, torch.zeros(2))(g @ g.T) @ g
    torch.testing.assert_close(u, swapped)
    xi = 0.6 - float(f @ r) / float(f @ f)
    sided = step(Blur(0.6, one_sided=True), r, f)
    torch.testing.assert_close(sided, r + max(0.0, xi) * f)
    assert float(f @ sided) >= 0.6 * float(f @ f) - 1e-9


def test_one_sided_keeps_what_helps_forgetting():
    _, f = rows(3)
    r = 4 * f  # it helps F by more than gamma asks for
    torch.testing.assert_close(step(Blur(1.0, one_sided=True), r, f), r)
    torch.testing.assert_close(step(Blur(1.0), r, f), f)


def test_first_order_the_forget_loss_does_not_rise():
    g = torch.Generator().manual_seed(0)
    H = torch.randn(12, 12, dtype=torch.float64, generator=g)
    H = H @ H.T
    w, a, b = torch.randn(3, 12, dtype=torch.float64, generator=g)

    def forget(x):
        return float((x - b) @ H @ (x - b) / 2)

    for gamma in (0.01, 0.3, 3.0):
        u = step(Blur(gamma), w - a, H @ (w - b))
        assert forget(w - 1e-6 * u) < forget(w)
    blind = w - a - 2 * H @ (w - b)  # what a scalarisation with the wrong weight does
    assert forget(w - 1e-6 * blind) > forget(w)


def test_a_vanished_lower_or_upper_row():
    r, f = rows(4)
    for factor in (0.0, 1e-10):
        torch.testing.assert_close(step(Blur(), r, factor * f), r, rtol=0, atol=1e-9)
        torch.testing.assert_close(step(Blur(), factor * r, f), f, rtol=0, atol=1e-9)
        unit = Blur(norm="unit")
        torch.testing.assert_close(step(unit, r, factor * f), r / r.norm())
        torch.testing.assert_close(step(unit, factor * r, f), f / f.norm())
    assert not step(Blur(), 0 * r, 0 * f).any()


def test_refusals():
    for bad in ({"gamma": -1}, {"norm": "l1"}, {"metric": "adam"}, {"tiny": 2}):
        with pytest.raises(ValueError, match=r"found|unknown"):
            Blur(**bad)
    with pytest.raises(ValueError, match=r"two rows, one of them 'forget'; found retain, other$"):
        Blur().given(["retain", "other"], torch.zeros(2))
    with pytest.raises(ValueError, match=r"found retain, forget, third$"):
        Blur().given(["retain", "forget", "third"], torch.zeros(3))
    with pytest.raises(ValueError, match=r"found 3$"):
        Blur()(torch.eye(3, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"optimizer=optimizer"):
        Blur(metric="optimizer")(torch.eye(2, dtype=torch.float64))
