"""EmbeddingBag: every option against every bag alone (tests/rules/call_oracle.py)."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

calls = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("call_oracle.py"))))

V, D = 7, 3
MODES = ["sum", "mean", "max"]


def bags(mode: str, **options) -> nn.EmbeddingBag:
    return nn.EmbeddingBag(V, D, mode=mode, **options).double()


def case_of(module, tokens, weights=None, *, flat=False, dtype=torch.int64):
    """tokens: a list per bag; flat: given one after the other with offsets, else as a table."""

    def inputs(samples):
        chosen = [tokens[i] for i in samples]
        kwargs = {}
        if weights is not None:
            kwargs["per_sample_weights"] = torch.cat([weights[i] for i in samples])
        if not flat:
            table = torch.tensor(chosen, dtype=dtype)
            if weights is not None:
                kwargs["per_sample_weights"] = torch.stack([weights[i] for i in samples])
            return (table,), kwargs
        lengths = torch.tensor([0, *map(len, chosen)], dtype=dtype)
        offsets = lengths.cumsum(0).to(dtype)
        offsets = offsets if module.include_last_offset else offsets[:-1]
        row = [token for one in chosen for token in one]
        return (torch.tensor(row, dtype=dtype), offsets), kwargs

    return calls.Case(module, inputs, [0], len(tokens))


def drawn(lengths, vocabulary=V):
    """Tokens of each bag; some come more than once."""
    return [torch.randint(vocabulary, (length,)).tolist() for length in lengths]


OPTIONS = {
    "plain": {},
    "padding": {"padding_idx": 2},
    "padding from the end": {"padding_idx": -1},
    "last offset": {"include_last_offset": True},
    "sparse": {"sparse": True},
}


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("flat", [False, True], ids=["table", "flat"])
@pytest.mark.parametrize(
    ("mode", "option"),
    [(m, o) for m in MODES for o in OPTIONS if (m, o) != ("max", "sparse")],  # torch has it not
)
def test_rows(mode, option, flat, dtype):
    lengths = [4, 1, 0, 6, 3] if flat else [6] * 5
    module = bags(mode, **OPTIONS[option])
    case = case_of(module, drawn(lengths), flat=flat, dtype=dtype)
    calls.check(case)
    (factor,) = calls.rows_of(case, module, case.call(module)[0])["weight"]
    assert factor.index.dtype == torch.int64


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("flat", [False, True], ids=["table", "flat"])
def test_weights_of_the_tokens(option, flat):
    lengths = [4, 1, 0, 6, 3] if flat else [6] * 5
    weights = [torch.randn(length, dtype=torch.float64) for length in lengths]
    calls.check(case_of(bags("sum", **OPTIONS[option]), drawn(lengths), weights, flat=flat))


@pytest.mark.parametrize("mode", MODES)
def test_bags_of_padding_alone_and_empty_bags(mode):
    module = bags(mode, padding_idx=2)
    calls.check(case_of(module, [[2, 2], [], [2, 3, 2], [], [2]], flat=True))


@pytest.mark.parametrize("mode", MODES)
def test_all_bags_empty(mode):
    case = case_of(bags(mode), [[], []], flat=True)
    found = calls.rows_of(case, case.module, case.call(case.module)[0])["weight"]
    assert not calls.weighted_sum(found, torch.ones(2, dtype=torch.float64)).any()


@pytest.mark.parametrize("flat", [False, True], ids=["table", "flat"])
def test_ties_of_the_maximum_go_to_the_token_that_torch_chose(flat):
    module = bags("max")
    with torch.no_grad():  # few values: most bags have ties, between different tokens too
        module.weight.copy_(torch.randint(2, (V, D)))
    calls.check(case_of(module, drawn([8] * 40), flat=flat))


def test_a_frozen_weight_has_no_factor():
    module = bags("mean")
    case = case_of(module, drawn([2, 2]))
    call, _ = case.call(module)
    assert calls.call_rule_for(module)(module, call, set()) == {}


@pytest.mark.parametrize("option", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}])
def test_what_couples_samples_is_refused(option):
    with pytest.raises(ValueError, match=f"{next(iter(option))} couples the samples"):
        calls.call_rule_for(bags("sum", **option))


def test_what_has_no_fast_rule_is_said():
    module = bags("sum", include_last_offset=True)

    def answer(*args, module=module):
        return calls.supports(module, calls.Call(args, {}, [], [], None))

    tokens = torch.arange(5)
    assert answer(tokens, torch.tensor([0, 2, 5])) is None
    assert "offsets" in answer(tokens, torch.tensor([0, 2, 4]))  # leaves the last token out
    assert "offsets" in answer(tokens, torch.tensor([0, 3, 2]), module=bags("sum"))
    ragged = torch.nested.nested_tensor([tokens[:2], tokens], layout=torch.jagged)
    assert "nested" in answer(ragged)
    assert not calls.needs_rng(module)


@settings(max_examples=30, deadline=None)
@given(
    mode=st.sampled_from(MODES),
    padding=st.sampled_from([None, 0, 3]),
    last=st.booleans(),
    weighted=st.booleans(),
    lengths=st.lists(st.integers(0, 7), min_size=1, max_size=6),
    vocabulary=st.integers(4, V),
    seed=st.integers(0, 2**16),
)
def test_any_bags(mode, padding, last, weighted, lengths, vocabulary, seed):
    torch.manual_seed(seed)
    module = bags(mode, padding_idx=padding, include_last_offset=last)
    weights = None
    if weighted and mode == "sum":
        weights = [torch.randn(length, dtype=torch.float64) for length in lengths]
    case = case_of(module, drawn(lengths, vocabulary), weights, flat=True)
    calls.check(case, float32=False)
