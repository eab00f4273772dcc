"""MultiheadAttention: every option against every sample alone (tests/rules/call_oracle.py)."""

from __future__ import annotations

import math
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from steelyard.rules.factors import Dense, Outer

calls = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("call_oracle.py"))))

B, L, S, E, HEADS = 4, 5, 3, 6, 2
SHARING = {"self": "qqq", "memory": "qkk", "keyed": "qqv", "crossed": "qkq", "apart": "qkv"}


def attention(**options) -> nn.MultiheadAttention:
    module = nn.MultiheadAttention(E, HEADS, **options).double()
    with torch.no_grad():
        for parameter in module.parameters():  # biases begin at zero
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module


def case_of(
    module, sharing="self", *, L=L, S=S, B=B, masks=(), causal=None, used=(True, True), **flags
):
    """masks: of "2-D", "3-D", "padding", each boolean, or with "float " in front. used: whether
    the losses see the output and the weights. causal: the mask that goes with the hint."""
    pattern = SHARING[sharing]
    S = S if sharing == "memory" or sharing == "apart" else L
    heads, widths = module.num_heads, {"q": E, "k": module.kdim, "v": module.vdim}
    tensors = {
        one: torch.randn(B, L if one == "q" else S, widths[one], dtype=torch.float64)
        for one in dict.fromkeys(pattern)
    }
    given_masks = {kind: made_mask(kind, B, heads, L, S) for kind in masks}

    def inputs(samples):
        chosen, kwargs = list(samples), dict(flags)
        parts = {name: x[chosen] for name, x in tensors.items()}
        if not module.batch_first:
            parts = {name: x.transpose(0, 1) for name, x in parts.items()}
        for kind, mask in given_masks.items():
            if "padding" in kind:
                kwargs["key_padding_mask"] = mask[chosen]
            elif "2-D" in kind:
                kwargs["attn_mask"] = mask
            else:
                kwargs["attn_mask"] = mask[chosen].flatten(0, 1)
        if causal is not None:
            kwargs |= {"attn_mask": causal, "is_causal": True}
        return tuple(parts[one] for one in pattern), kwargs

    dims = [0 if module.batch_first else 1] + [0] * flags.get("need_weights", True)
    dims = [dim if use else None for dim, use in zip(dims, used, strict=False)]
    return calls.Case(module, inputs, dims, B)


def made_mask(kind: str, B: int, heads: int, L: int, S: int) -> torch.Tensor:
    """Never masks a row's first key, so that softmax is defined."""
    shape = {"2-D": (L, S), "3-D": (B, heads, L, S), "padding": (B, S)}[kind.split()[-1]]
    mask = torch.rand(shape) < 0.4
    mask[..., 0] = False
    if "float" not in kind:
        return mask
    return torch.randn(shape, dtype=torch.float64).masked_fill(mask, -math.inf)


OPTIONS = {
    "plain": {},
    "batch first": {"batch_first": True},
    "no bias": {"bias": False, "batch_first": True},
    "bias_kv": {"add_bias_kv": True},
    "zero": {"add_zero_attn": True, "batch_first": True},
    "bias_kv zero": {"add_bias_kv": True, "add_zero_attn": True, "bias": False},
}
NEEDS = {
    "no weights": {"need_weights": False},
    "weights": {},
    "weights per head": {"average_attn_weights": False},
}
MASKS = [
    ("2-D",),
    ("3-D",),
    ("padding",),
    ("2-D", "padding"),
    ("3-D", "padding"),
    ("float 2-D",),
    ("float 3-D", "float padding"),
]


@pytest.mark.parametrize("need", NEEDS)
@pytest.mark.parametrize("sharing", SHARING)
@pytest.mark.parametrize("option", OPTIONS)
def test_rows(option, sharing, need):
    calls.check(case_of(attention(**OPTIONS[option]), sharing, **NEEDS[need]))


@pytest.mark.parametrize("need", NEEDS)
@pytest.mark.parametrize("masks", MASKS, ids=" and ".join)
@pytest.mark.parametrize("option", ["plain", "bias_kv zero"])
def test_masks(option, masks, need):
    module = attention(**OPTIONS[option])
    calls.check(case_of(module, "apart", masks=masks, **NEEDS[need]))


@pytest.mark.parametrize("masks", [(), ("float padding",)], ids=["alone", "padding"])
@pytest.mark.parametrize("need", NEEDS)
@pytest.mark.parametrize("option", ["plain", "batch first"])
def test_causal_hint(option, need, masks):
    true = nn.Transformer.generate_square_subsequent_mask(L, dtype=torch.float64)
    for causal in (true, 0.1 * true.isinf()):  # torch takes the hint or the mask; so must we
        module = attention(**OPTIONS[option])
        calls.check(case_of(module, causal=causal, masks=masks, **NEEDS[need]))


@pytest.mark.parametrize("need", ["weights", "weights per head"])
@pytest.mark.parametrize("used", [(True, False), (False, True)])
def test_each_output_alone(used, need):
    calls.check(case_of(attention(add_bias_kv=True), used=used, **NEEDS[need]))


@pytest.mark.parametrize("need", NEEDS)
@pytest.mark.parametrize("option", OPTIONS)
def test_other_widths(option, need):
    module = attention(kdim=4, vdim=7, **OPTIONS[option])
    calls.check(case_of(module, "apart", **NEEDS[need]))


def test_a_projection_that_is_shared_has_two_uses():
    module = attention(kdim=E, vdim=7)
    module.k_proj_weight = module.q_proj_weight
    case = case_of(module, "apart")
    calls.check(case)
    found = calls.rows_of(case, module, case.call(module)[0])
    assert len(found["q_proj_weight"]) == 2
    assert "k_proj_weight" not in found


@pytest.mark.parametrize("sharing", ["self", "memory", "apart"])
@pytest.mark.parametrize(("lengths", "kind"), [((5, 3), Outer), ((40, 30), Dense)])
def test_the_packed_weight_is_ghost_or_instantiated(lengths, kind, sharing):
    module = attention()
    case = case_of(module, sharing, L=lengths[0], S=lengths[1])
    calls.check(case)
    found = calls.rows_of(case, module, case.call(module)[0])["in_proj_weight"]
    assert {type(factor) for factor in found} == {kind}
    assert len(found) == 1 or kind is Outer


def test_a_short_query_on_a_long_memory():
    calls.check(case_of(attention(), "memory", L=2, S=60))


@pytest.mark.parametrize("sharing", ["self", "memory"])
def test_tensors_detached_one_by_one_still_share_one_factor(sharing):
    """The engine detaches query, key and value each on its own."""
    module = attention(batch_first=True)
    case = case_of(module, sharing)
    call, _ = case.call(module)
    assert call.args[1] is not call.args[2]
    found = calls.rows_of(case, module, call)["in_proj_weight"]
    assert len(found) == {"self": 1, "memory": 2}[sharing]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("masks", [(), ("2-D",)], ids=["no mask", "mask"])
@pytest.mark.parametrize("need", NEEDS)
@pytest.mark.parametrize("option", ["plain", "batch first", "bias_kv zero"])
def test_dropout_is_replayed(option, need, masks, dtype):
    module = attention(dropout=0.4, **OPTIONS[option])
    case = case_of(module, "memory", masks=masks, **NEEDS[need])
    if dtype == torch.float64:
        calls.check(case, random=True)
        return
    module.float()
    call, losses = case.call(module)
    rows = [{n: g.double() for n, g in row.items()} for row in case.together(losses)]
    calls.compare(case, module, call, rows, 2e-6)  # the truth has float32's own error


def test_dropout_rests_in_evaluation():
    module = attention(dropout=0.5)
    assert calls.needs_rng(module)
    assert not calls.needs_rng(attention())
    calls.check(case_of(module.eval()))


@pytest.mark.parametrize(
    "trained",
    ["in_proj_weight", "in_proj_bias", "bias_k", "bias_v", "out_proj.weight", "out_proj.bias"],
)
def test_one_parameter_alone(trained):
    module = attention(add_bias_kv=True)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name == trained)
    case = case_of(module, "memory")
    assert case.wanted == {trained}
    calls.check(case)


@pytest.mark.parametrize("trained", ["q_proj_weight", "k_proj_weight", "v_proj_weight"])
def test_one_projection_alone(trained):
    module = attention(kdim=4, vdim=7)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name == trained)
    calls.check(case_of(module, "apart"))


def test_what_has_no_fast_rule_is_said():
    module = attention(dropout=0.5, batch_first=True)
    x = torch.randn(B, L, E, dtype=torch.float64)
    state = calls.rng_state(module)

    def answer(x, rng=state, module=module):
        return calls.supports(module, calls.Call((x, x), {"value": x}, [], [], rng))

    assert answer(x) is None
    assert "batch dimension" in answer(x[0])
    assert "no state" in answer(x, rng=None)
    assert answer(x, rng=None, module=module.eval()) is None
    module.train()
    assert "half precision" in answer(x.bfloat16())
    assert "half precision" in calls.supports(
        module, calls.Call((x, x, x), {}, [x.bfloat16(), None], [], state)
    )
    with torch.autocast("cpu"):
        assert "half precision" in answer(x.float())
    assert "nested" in answer(torch.nested.nested_tensor([x[0], x[1, :2]], layout=torch.jagged))
    module.out_proj.register_parameter("low_rank", nn.Parameter(torch.zeros(1)))
    assert "out_proj.low_rank" in answer(x)


@settings(max_examples=30, deadline=None)
@given(
    sharing=st.sampled_from(sorted(SHARING)),
    need=st.sampled_from(sorted(NEEDS)),
    masks=st.sampled_from([(), *MASKS]),
    first=st.booleans(),
    bias=st.booleans(),
    extra=st.booleans(),
    zero=st.booleans(),
    lengths=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    batch=st.integers(1, 5),
    seed=st.integers(0, 2**16),
)
def test_any_options(sharing, need, masks, first, bias, extra, zero, lengths, batch, seed):
    torch.manual_seed(seed)
    module = attention(batch_first=first, bias=bias, add_bias_kv=extra, add_zero_attn=zero)
    sizes = {"L": lengths[0], "S": lengths[1], "B": batch}
    calls.check(case_of(module, sharing, masks=masks, **sizes, **NEEDS[need]), float32=False)
