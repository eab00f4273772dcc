"""The switch: what is zeroed, what stays; and the whole procedure of the paper, written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from steelyard import AutoClip, Gaussian, PerSample, attach
from steelyard.plans.pretraining import split_steps
from steelyard.steps.curvature import measure
from steelyard.steps.switch import HOW, carry_over
from steelyard.types import Clipped

FIRST = {"exp_avg", "momentum_buffer"}


def stepped(kind, steps=3, **options):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = kind(model.parameters(), **options)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
    return model, optimizer


def state_of(optimizer):
    """Values and memory of every entry of the state."""
    return {
        (i, name): (value.clone(), value.data_ptr())
        for i, state in enumerate(optimizer.state.values())
        for name, value in state.items()
        if isinstance(value, torch.Tensor)
    }


ADAMS = [
    (torch.optim.Adam, {}),
    (torch.optim.AdamW, {"amsgrad": True}),
    (torch.optim.AdamW, {"fused": True}),
    (torch.optim.NAdam, {}),
    (torch.optim.RAdam, {}),
    (torch.optim.Adamax, {}),
]
OTHERS = [
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    (torch.optim.RMSprop, {"momentum": 0.9, "centered": True}),
    (torch.optim.Adadelta, {}),
    (torch.optim.Adagrad, {"initial_accumulator_value": 0.5}),
]


@pytest.mark.parametrize(("kind", "options"), ADAMS + OTHERS)
def test_reset_m_zeroes_the_first_moment_in_place_and_nothing_else(kind, options):
    _, optimizer = stepped(kind, **options)
    before, learning = state_of(optimizer), [dict(g) for g in optimizer.param_groups]
    done = carry_over(optimizer)
    after = state_of(optimizer)
    assert after.keys() == before.keys()
    for (i, name), (value, place) in after.items():
        old, old_place = before[i, name]
        assert old.any()
        assert place == old_place
        assert torch.equal(value, torch.zeros_like(old) if name in FIRST else old), name
    assert done.reset == {n: 2 for n in FIRST if (0, n) in before}
    assert set(done.reset) | set(done.kept) == {name for _, name in before}
    assert [dict(g) for g in optimizer.param_groups] == learning


def test_the_others_do_what_they_say():
    def zeros(how):
        _, optimizer = stepped(torch.optim.AdamW)
        carry_over(optimizer, how)
        return {name for (_, name), (value, _) in state_of(optimizer).items() if not value.any()}

    assert zeros("keep") == set()
    assert zeros("reset-m") == {"exp_avg"}
    assert zeros("reset-v") == {"exp_avg_sq"}
    assert zeros("reset-all") == {"exp_avg", "exp_avg_sq", "step"}
    assert list(HOW) == ["reset-m", "reset-v", "keep", "reset-all"]


@pytest.mark.parametrize(("kind", "options"), ADAMS + OTHERS)
def test_reset_all_is_a_fresh_optimizer(kind, options):
    model, optimizer = stepped(kind, **options)
    carry_over(optimizer, "reset-all")
    other = nn.Linear(3, 2)
    other.load_state_dict(model.state_dict())
    fresh = kind(other.parameters(), **options)
    for one, steps in ((model, optimizer), (other, fresh)):
        torch.manual_seed(1)
        for _ in range(3):
            steps.zero_grad()
            one(torch.randn(4, 3)).square().sum().backward()
            steps.step()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


def step_lengths(how, steps, *, counter_only=False):
    """abs(update) of AdamW under a constant gradient 1 after 5000 equal steps, learning rate 1."""
    p = nn.Parameter(torch.zeros((), dtype=torch.float64))
    optimizer = torch.optim.AdamW([p], lr=1.0, weight_decay=0, eps=0)
    p.grad = torch.ones_like(p)
    optimizer.step()
    state = optimizer.state[p]
    state["exp_avg"].fill_(1.0)
    state["exp_avg_sq"].fill_(1.0)
    state["step"].fill_(5000)
    if counter_only:
        state["step"].zero_()
        state["exp_avg"].zero_()
    else:
        carry_over(optimizer, how)
    lengths = []
    for _ in range(steps):
        before = p.item()
        optimizer.step()
        lengths.append(abs(p.item() - before))
    return lengths


def test_why_the_counter_stays_with_v():
    """Trap: t reset, v kept makes steps 32 times too small; v reset, t kept as much too large."""
    small = step_lengths("keep", 300, counter_only=True)
    assert small[0] == pytest.approx(math.sqrt(1 - 0.999), rel=0.01)  # 1/32
    assert small[-1] < 0.6  # still recovering
    assert step_lengths("keep", 2) == pytest.approx([1, 1], rel=0.01)
    assert step_lengths("reset-all", 2) == pytest.approx([1, 1], rel=0.01)
    assert step_lengths("reset-v", 1)[0] == pytest.approx(1 / math.sqrt(1 - 0.999), rel=0.01)
    warm = step_lengths("reset-m", 60)  # low by 1 - beta1^k: a warm-up of some ten steps
    assert warm == pytest.approx([1 - 0.9**k for k in range(1, 61)], rel=0.01)


def test_numbers_that_are_no_tensors_and_empty_states():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    assert carry_over(optimizer).reset == {}
    optimizer.state[model.weight] = {"step": 7, "exp_avg": torch.ones(1, 2), "note": None}
    assert str(carry_over(optimizer)) == (
        "reset-m: reset exp_avg of 1; kept step of 1 (parameters)"
    )
    carry_over(optimizer, "reset-all")
    assert optimizer.state[model.weight]["step"] == 0


def test_state_that_nobody_named():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters())
    optimizer.state[model.weight] = {"velocity": torch.ones(1, 2), "energy": torch.ones(1, 2)}
    for how in ("reset-m", "reset-v", "reset-all"):
        with pytest.raises(ValueError, match="SGD has state 'energy'"):
            carry_over(optimizer, how)
    assert carry_over(optimizer, "keep").kept == {"energy": 1, "velocity": 1}
    assert carry_over(optimizer, first=["velocity"], second=["energy"]).reset == {"velocity": 1}
    assert carry_over(optimizer, "reset-v", first=["velocity"], second=["energy"]).kept == {
        "velocity": 1
    }
    with pytest.raises(ValueError, match="'reset-n': choose one of reset-m"):
        carry_over(optimizer, "reset-n")


# -- the twin: the procedure of the paper, sample by sample --------------------------------------


def make_model():
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def make_data(seed):
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(40, 4, generator=random, dtype=torch.float64)
    return x, torch.randint(3, (40,), generator=random)


PUBLIC, PRIVATE = make_data(1), make_data(2)
T, B, SIGMA, LR, WD = 100, 6, 0.7, 0.02, 0.1


def batches(s):
    """Who takes part in step t; every seventh private batch is empty."""
    random = torch.Generator().manual_seed(9)
    drawn = [(torch.rand(40, generator=random) < B / 40).nonzero().squeeze(1) for _ in range(T)]
    return [b[:0] if t % 7 == 6 and t >= s * T else b for t, b in enumerate(drawn)]


def written_out(s):
    """The training procedure of the paper, reset-m, on lists of tensors and loops over samples."""
    x = [p.detach().clone() for p in make_model().parameters()]
    m, v = [torch.zeros_like(p) for p in x], [torch.zeros_like(p) for p in x]
    noise = Gaussian(SIGMA, seed=4)  # replayed: privatising zeros gives sigma z
    for t, chosen in enumerate(batches(s)):
        data = PUBLIC if t < s * T else PRIVATE
        ghat = [torch.zeros_like(p) for p in x]
        for i in chosen:
            at = [p.clone().requires_grad_() for p in x]
            logits = at[2] @ torch.tanh(at[0] @ data[0][i] + at[1]) + at[3]
            loss = torch.logsumexp(logits, 0) - logits[data[1][i]]
            g = torch.autograd.grad(loss, at)
            norm = math.sqrt(sum(float((part**2).sum()) for part in g))
            C = 1 / len(chosen) if t < s * T else 1 / (norm + 0.01)  # AUTO-S
            for total, part in zip(ghat, g, strict=True):
                total += C * part
        if t >= s * T:
            z = noise.privatise(Clipped([torch.zeros_like(p) for p in x], 1.0)).tensors
            ghat = [(total + one) / B for total, one in zip(ghat, z, strict=True)]
            if t - 1 < s * T:  # the switch
                m = [torch.zeros_like(p) for p in x]
        for k, g in enumerate(ghat):
            m[k] = 0.9 * m[k] + 0.1 * g
            v[k] = 0.999 * v[k] + 0.001 * g**2
            mhat, vhat = m[k] / (1 - 0.9 ** (t + 1)), v[k] / (1 - 0.999 ** (t + 1))
            x[k] = x[k] - LR * WD * x[k] - LR * mhat / (vhat.sqrt() + 1e-8)
    return x


def public_losses(model, x, y):
    return cross_entropy(model(x), y, reduction="none")


def pretrained(s, how="reset-m", *, watched=False, steps=T):
    """The same with the library, in a plain loop; watched: a curvature is measured now and then."""
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=WD)
    public, _ = split_steps(T, s)
    drawn = batches(s)[:steps]
    for t, chosen in enumerate(drawn[:public]):
        optimizer.zero_grad()
        public_losses(model, PUBLIC[0][chosen], PUBLIC[1][chosen]).mean().backward()
        if watched and t % 20 == 10:
            measure(model, public_losses, *PUBLIC, weighting=AutoClip(), probes=2)
        optimizer.step()
    if public == T:
        return list(model.parameters())
    optimizer.zero_grad()
    carry_over(optimizer, how)
    rows = PerSample(model, AutoClip(1.0), expected_batch=B)
    attach(optimizer, rows, Gaussian(SIGMA, seed=4))
    for chosen in drawn[public:]:
        rows.backward(public_losses(model, PRIVATE[0][chosen], PRIVATE[1][chosen]))
        optimizer.step()
        optimizer.zero_grad()
    return list(model.parameters())


@pytest.mark.parametrize("s", [0.25, 0.333])
def test_equal_to_the_procedure_written_out(s):
    for p, q in zip(pretrained(s, watched=True), written_out(s), strict=True):
        torch.testing.assert_close(p.detach(), q, rtol=1e-9, atol=1e-11)


def test_the_twin_tells_the_choices_apart():
    reset = torch.cat([p.flatten() for p in pretrained(0.25, steps=40)])
    for how in ("reset-v", "keep", "reset-all"):
        other = torch.cat([p.flatten() for p in pretrained(0.25, how, steps=40)])
        assert (reset - other).abs().max() > 1e-3, how


def test_share_1_is_adamw_on_public_data_bit_for_bit():
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=WD)
    for chosen in batches(1.0):
        optimizer.zero_grad()
        public_losses(model, PUBLIC[0][chosen], PUBLIC[1][chosen]).mean().backward()
        optimizer.step()
    for p, q in zip(pretrained(1.0, watched=True), model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_share_0_is_private_adamw_bit_for_bit():
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=WD)
    rows = PerSample(model, AutoClip(1.0), expected_batch=B)
    attach(optimizer, rows, Gaussian(SIGMA, seed=4))
    for chosen in batches(0.0)[:40]:
        rows.backward(public_losses(model, PRIVATE[0][chosen], PRIVATE[1][chosen]))
        optimizer.step()
        optimizer.zero_grad()
    for p, q in zip(pretrained(0.0, steps=40), model.parameters(), strict=True):
        assert torch.equal(p, q)
