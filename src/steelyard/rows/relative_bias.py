"""Relative position biases of the T5 family: one table of parameters, one bias for a whole batch.

The first attention layer makes a bias [1, heads, T, T] from its table and hands it to all layers,
which add it to the scores of every sample: its gradient has no sample dimension left. So before
that layer is called, the same bias is made and given to it with a sample dimension:

    bias_i = f(table) for every i,    g_i = (df/dtable)' dloss_i/dbias_i

Served by shape, not by import: a module with `compute_bias(T, T, device=...)`, an embedding
`relative_attention_bias` and an argument `position_bias` (transformers' T5, MT5, UMT5, ...).
"""

from __future__ import annotations

import inspect
import re
import weakref
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vjp, vmap

from steelyard.rows.cuts import Reached, cut
from steelyard.rows.own_code import twin
from steelyard.rows.tape import Hook, Tape
from steelyard.rows.uses import BatchMismatchError, half
from steelyard.rules.factors import Dense, Factor

TABLE = "relative_attention_bias"


def has_relative_bias(module: nn.Module) -> bool:
    if not (
        callable(getattr(module, "compute_bias", None))
        and bool(getattr(module, "has_relative_attention_bias", False))
        and isinstance(getattr(module, TABLE, None), nn.Embedding)
    ):
        return False
    made = list(inspect.signature(module.compute_bias).parameters)  # type: ignore[arg-type]
    taken = inspect.signature(module.forward).parameters
    return (
        made[:2] == ["query_length", "key_length"] and "device" in made and "position_bias" in taken
    )


def _adds_mask(module: nn.Module) -> bool:
    """Whether the module adds its mask only to a bias that it made itself (transformers 4)."""
    try:
        source = inspect.getsource(type(module).forward)
    except (OSError, TypeError):
        return False
    return re.search(r"position_bias = position_bias \+ \w*mask", source) is not None


class Bias:
    """A module with a relative bias, and the name of its table in the model."""

    def __init__(self, path: str, module: nn.Module, name: str):
        self.path, self.module, self.name = path, module, name
        self.adds_mask = _adds_mask(module)

    @property
    def table(self) -> Tensor:
        return self.module.get_parameter(f"{TABLE}.weight")

    def rows(self, dy: Tensor) -> Tensor:
        """dy [B, heads, T, T] -> [B, *table]."""

        def made(table: Tensor) -> Tensor:
            double = twin(self.module, {id(self.table): table}, lambda module: None)
            return double.compute_bias(dy.shape[2], dy.shape[3], device=dy.device)  # type: ignore[operator]

        back: Any = vjp(made, self.table.detach().to(dy.dtype))[1]
        return vmap(lambda one: back(one)[0])(dy.unsqueeze(1))


class Biases:
    """The hooks of all modules with a relative bias."""

    def __init__(self, tape: Tape, biases: list[Bias]):
        self._tape, self.closed = tape, False
        self._handles = [
            bias.module.register_forward_pre_hook(Hook(Biases.give, self, bias), with_kwargs=True)
            for bias in biases
        ]

    def close(self) -> None:
        self.closed = True
        for handle in self._handles:
            handle.remove()

    def give(self, bias: Bias, module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        given = len(args) > 1 or kwargs.get("position_bias") is not None
        past = kwargs.get("past_key_values")
        if given or not torch.is_grad_enabled() or (past is not None and past.get_seq_length()):
            return None
        made = module.compute_bias(hidden.shape[1], hidden.shape[1], device=hidden.device)
        watcher = None if self._tape.replaying else _Use(self._tape, bias)
        if watcher is not None:
            self._tape.uses.add(watcher)
        expanded = made.expand(hidden.shape[0], -1, -1, -1)
        (watched,) = cut(watcher, self._tape.anchor, [], [expanded])
        if bias.adds_mask and kwargs.get("mask") is not None:
            watched = watched + kwargs["mask"][:, :, :, : hidden.shape[1]]
        return args, kwargs | {"position_bias": watched}


class _Use:
    """One bias given to a module."""

    def __init__(self, tape: Tape, bias: Bias):
        self._tape, self._bias, self.names = weakref.ref(tape), bias, [bias.name]

    def kind(self, batch: int) -> Hashable:
        return self._bias.path, batch > 1

    def reached(self, cut: Reached) -> None:
        tape, (dy,) = self._tape(), cut.gradients
        deliver = None if tape is None else tape.listener()
        if dy is None or deliver is None:
            return
        deliver(_Arrived(self._bias, id(self), dy))


class _Arrived:
    def __init__(self, bias: Bias, key: int, dy: Tensor):
        self._bias, self.key = bias, key
        self.rough = half(dy)
        self._dy = dy.float() if self.rough else dy

    def turnable(self, batch: int) -> None:
        return None

    def gradients(self, batch: int) -> list[Tensor]:
        if len(self._dy) != batch:
            raise BatchMismatchError(
                f"module {self._bias.path!r} saw {len(self._dy)} samples where there are {batch} "
                "losses",
                [self._bias.name],
            )
        return [self._dy]

    def factors(self, batch: int) -> dict[str, list[Factor]]:
        (dy,) = self.gradients(batch)
        return {self._bias.name: [Dense(self._bias.rows(dy))]}
