"""RNN, LSTM and GRU: every option against every sample alone (tests/rules/call_oracle.py)."""

from __future__ import annotations

import runpy
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

calls = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("call_oracle.py"))))

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

B, T, N, H = 4, 5, 3, 6
KINDS = {
    "tanh": (nn.RNN, {"nonlinearity": "tanh"}),
    "relu": (nn.RNN, {"nonlinearity": "relu"}),
    "lstm": (nn.LSTM, {}),
    "projected": (nn.LSTM, {"proj_size": 2}),
    "gru": (nn.GRU, {}),
}
OPTIONS = {
    "plain": {},
    "two layers": {"num_layers": 2},
    "both ways": {"bidirectional": True},
    "all": {"num_layers": 3, "bidirectional": True, "batch_first": True},
    "no bias": {"num_layers": 2, "bias": False, "bidirectional": True},
    "batch first": {"batch_first": True},
}


def recurrent(kind: str, **options) -> nn.RNNBase:
    made, fixed = KINDS[kind]
    return made(N, H, **fixed, **options).double()


def case_of(module: nn.RNNBase, *, states=False, used=(True, True, True), T=T, B=B):
    """used: whether the losses see the output, h_n and c_n."""
    lstm, D = isinstance(module, nn.LSTM), 2 if module.bidirectional else 1
    x = torch.randn(B, T, N, dtype=torch.float64)
    rows = module.num_layers * D
    h = torch.randn(rows, B, module.proj_size or H, dtype=torch.float64)
    c = torch.randn(rows, B, H, dtype=torch.float64)

    def inputs(samples):
        chosen = list(samples)
        part = x[chosen] if module.batch_first else x[chosen].transpose(0, 1)
        hx = (h[:, chosen], c[:, chosen]) if lstm else h[:, chosen]
        return (part, hx) if states else (part,), {}

    dims = [0 if module.batch_first else 1, 1, 1][: 3 if lstm else 2]
    return calls.Case(module, inputs, [d if u else None for d, u in zip(dims, used)], B)  # noqa: B905


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_rows(kind, option):
    calls.check(case_of(recurrent(kind, **OPTIONS[option]), states=option != "plain"))


@pytest.mark.parametrize("output", ["output", "h_n", "c_n"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_output_alone(kind, output):
    used = (output == "output", output == "h_n", output == "c_n")
    if used[2] and KINDS[kind][0] is not nn.LSTM:
        used = (True, True, False)  # only an LSTM has a c_n
    module = recurrent(kind, num_layers=2, bidirectional=True)
    calls.check(case_of(module, used=used))


@pytest.mark.parametrize("kind", KINDS)
def test_one_step(kind):
    calls.check(case_of(recurrent(kind), T=1, states=True))


@pytest.mark.parametrize("kind", KINDS)
def test_long_sequences_are_instantiated(kind):
    """Past some length the rows are cheaper than the Gram matrices."""
    calls.check(case_of(recurrent(kind), T=60, B=2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_dropout_is_replayed(kind, dtype):
    module = recurrent(kind, num_layers=3, dropout=0.4, bidirectional=True)
    case = case_of(module, states=True)
    if dtype == torch.float64:
        calls.check(case, random=True)
        return
    module.float()
    call, losses = case.call(module)
    rows = [{n: g.double() for n, g in row.items()} for row in case.together(losses)]
    calls.compare(case, module, call, rows, 2e-6)  # the truth has float32's own error


def test_dropout_rests_where_torch_rests_it():
    module = recurrent("gru", num_layers=2, dropout=0.5)
    assert calls.needs_rng(module)
    calls.check(case_of(module.eval()))
    assert not calls.needs_rng(recurrent("gru"))


ONE = ["bias_ih_l0", "weight_hh_l0_reverse", "weight_ih_l1", "bias_hh_l1_reverse"]
ALONE = [(kind, one) for kind in KINDS for one in ONE]


@pytest.mark.parametrize(
    ("kind", "trained"),
    [*ALONE, ("projected", "weight_hr_l0"), ("projected", "weight_hr_l1_reverse")],
)
def test_one_parameter_alone(kind, trained):
    module = recurrent(kind, num_layers=2, bidirectional=True)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name == trained)
    calls.check(case_of(module))


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_shared_by_layers_has_two_uses(kind):
    module = recurrent(kind, num_layers=2)
    module.weight_hh_l1, module.bias_hh_l1 = module.weight_hh_l0, module.bias_hh_l0
    module.bias_ih_l0 = module.bias_ih_l1
    calls.check(case_of(module))
    case = case_of(module)
    found = calls.rows_of(case, module, case.call(module)[0])
    assert len(found["weight_hh_l0"]) == 2
    assert "weight_hh_l1" not in found


def test_half_precision_weights_give_float32_rows():
    module = recurrent("lstm", num_layers=2)
    case = case_of(module)
    truth = case.alone()
    rough = module.bfloat16()
    found = calls.rows_of(case, rough, case.call(rough)[0])
    for name, factors in found.items():
        total = calls.weighted_sum(factors, torch.ones(B))
        calls.close(total, sum(row[name] for row in truth), 0.1, name)


def test_what_has_no_fast_rule_is_said():
    module = recurrent("gru", num_layers=2, dropout=0.5)
    x = torch.randn(B, T, N, dtype=torch.float64)

    state = calls.rng_state(module)

    def answer(*args, rng=state, module=module):
        return calls.supports(module, calls.Call(args, {}, [], [], rng))

    packed = nn.utils.rnn.pack_padded_sequence(x, [5, 5, 4, 2], batch_first=True)
    assert answer(x) is None
    assert "PackedSequence" in answer(packed)
    assert "batch dimension" in answer(x[0])
    assert "no state" in answer(x, rng=None)
    assert "half precision" in answer(x.bfloat16())
    with torch.autocast("cpu"):
        assert "half precision" in answer(x.float())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        normed = nn.utils.weight_norm(recurrent("gru"), "weight_hh_l0")
    assert "weight_hh_l0_g" in answer(x, module=normed)


class Own(nn.GRU):
    def forward(self, input, hx=None):
        return super().forward(2 * input, hx)


def test_a_subclass_with_a_forward_of_its_own_has_no_rule():
    module = Own(N, H)
    assert calls.call_rule_for(module) is None
    assert "no call rule" in calls.supports(module, calls.Call((), {}, [], [], None))
    assert not calls.needs_rng(module)


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    layers=st.integers(1, 3),
    both=st.booleans(),
    bias=st.booleans(),
    first=st.booleans(),
    states=st.booleans(),
    steps=st.integers(1, 9),
    batch=st.integers(1, 5),
    used=st.sampled_from([(True, True, True), (True, False, False), (False, True, True)]),
    seed=st.integers(0, 2**16),
)
def test_any_options(kind, layers, both, bias, first, states, steps, batch, used, seed):
    torch.manual_seed(seed)
    module = recurrent(kind, num_layers=layers, bidirectional=both, bias=bias, batch_first=first)
    case = case_of(module, states=states, used=used, T=steps, B=batch)
    calls.check(case, float32=False)
