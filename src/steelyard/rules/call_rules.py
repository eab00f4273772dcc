"""Which layers are served by a call rule, and by which.

Add a layer: write its rule beside `recurrent.py`, add a row to `_FAMILIES`, and a test of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from steelyard.rules.attention import attention, attention_draws, attention_refusal
from steelyard.rules.bags import bag, bag_error, bag_refusal
from steelyard.rules.calls import Call, CallRule
from steelyard.rules.recurrent import recurrent, recurrent_draws, recurrent_refusal


def _never(module: nn.Module) -> None:
    return None


class _Family(NamedTuple):
    rule: CallRule
    refusal: Callable[[nn.Module, Call], str | None]  # why the rule cannot serve one call
    draws: Callable[[nn.Module], bool | None] = _never  # whether it draws random numbers
    error: Callable[[nn.Module], str | None] = _never  # why no rule at all can serve the module


_RECURRENT = _Family(recurrent, recurrent_refusal, recurrent_draws)
_FAMILIES: dict[type[nn.Module], _Family] = {
    nn.MultiheadAttention: _Family(attention, attention_refusal, attention_draws),
    nn.RNN: _RECURRENT,
    nn.LSTM: _RECURRENT,
    nn.GRU: _RECURRENT,
    nn.EmbeddingBag: _Family(bag, bag_refusal, error=bag_error),
}
CALL_RULES: dict[type[nn.Module], CallRule] = {
    kind: family.rule for kind, family in _FAMILIES.items()
}


def call_rule_for(module: nn.Module) -> CallRule | None:
    """The call rule of a layer, or None where there is none; a subclass that has a `forward` of its
    own has none. Its rule gives the parameters of modules inside it too (`out_proj`).

    Raises ValueError for a layer that no per-sample rule can serve, the slow ones included.
    """
    family = _family(module)
    if family is None:
        return None
    error = family.error(module)
    if error:
        raise ValueError(error)
    return family.rule


def needs_rng(module: nn.Module) -> bool:
    """Whether `Call.rng` must hold `rng_state(module)` from before a call in training mode."""
    family = _family(module)
    return family is not None and bool(family.draws(module))


def supports(module: nn.Module, call: Call) -> str | None:
    """None where the rule of the module gives the exact rows of this call, else a sentence that
    says why not. Needs no gradients: it can be asked in the forward pass."""
    family = _family(module)
    if family is None:
        return f"{type(module).__name__} has no call rule"
    return family.refusal(module, call)


def _family(module: nn.Module) -> _Family | None:
    for kind, family in _FAMILIES.items():
        if isinstance(module, kind) and type(module).forward is kind.forward:
            return family
    return None
