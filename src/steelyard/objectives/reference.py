"""p0, the model before unlearning: what NPO, DPO, KL, UNDIAL and RMU's retain row compare with.

| symbol | variable |
|---|---|
| p0, z0 | `Reference`, `Reference.logits` |
| h0_l | `Reference.hidden` |
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from steelyard.objectives.layers import hidden
from steelyard.objectives.tokens import Tokens, logits


@dataclass(frozen=True, eq=False)
class Reference:
    """A model that is only asked, always in evaluation mode and without gradients.

    `model`: any causal language model; what trains it elsewhere changes p0, so use `of` or
    `frozen` unless it is a model of its own (another checkpoint, say).
    `adapter_off`: p0 is `model`, of peft, with its adapters disabled.
    Guarantees: modes (train or eval, module by module) and every requires_grad are as before after
    each call, also where peft would have changed them; nothing returned has a graph.
    The trained model is asked in its own mode: with dropout log(p/p0) is noise around the truth,
    and not 0 at p = p0, so use `model.eval()` (gradients flow all the same) or rates of 0.
    """

    model: nn.Module
    adapter_off: bool = False

    @classmethod
    def of(cls, model: nn.Module) -> Reference:
        """p0 of a model about to be unlearned: make it before the first step.

        A model of peft serves as its own reference with the adapters disabled, at no memory: p0 is
        the BASE model, so what an adapter has learnt already is not in it (merge it first, or use
        `frozen`). Any other model is copied.
        Raises: ValueError for a peft model of which more is trained than adapters disable.
        """
        adapted = _peft_model(model)
        if adapted is None:
            return cls.frozen(model)
        reference = cls(adapted, adapter_off=True)
        with reference._asked():
            names = [n for n, p in adapted.base_model.named_parameters() if p.requires_grad]
        if names:
            raise ValueError(
                f"{names[0]!r} is trained and no adapter disables it, so the base would drift away "
                "from p0: freeze it, or use Reference.frozen(model)"
            )
        return reference

    @classmethod
    def frozen(cls, model: nn.Module) -> Reference:
        """A copy of the model as it is now, adapters included: twice the weights in memory."""
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        return cls(copy.deepcopy(model).eval().requires_grad_(False))

    def logits(self, tokens: Tokens) -> Tensor:
        """z0 [B, T, V], at least float32."""
        with self._asked():
            return logits(self.model, tokens)

    def hidden(self, tokens: Tokens, layer: int | str) -> Tensor:
        """h0_l [B, T, d]: the output of a layer, as `steelyard.objectives.layers.hidden`."""
        with self._asked():
            return hidden(self.model, tokens, layer)

    @contextmanager
    def _asked(self) -> Iterator[None]:
        training = [module for module in self.model.modules() if module.training]
        for module in training:
            module.training = False
        try:
            with torch.no_grad(), _disabled(self.model, self.adapter_off):
                yield
        finally:
            for module in training:
                module.training = True


@contextmanager
def _disabled(model: Any, adapter_off: bool) -> Iterator[None]:
    """peft freezes adapters while they are disabled and then unfreezes every active one, so also
    one that the user had frozen: all flags are put back."""
    if not adapter_off:
        yield
        return
    flags = [(p, p.requires_grad) for p in model.parameters()]
    try:
        with model.disable_adapter():
            yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _peft_model(model: nn.Module) -> Any | None:
    """The peft model that `model` is or wraps (DDP, torch.compile), if any."""
    peft = sys.modules.get("peft")  # whoever holds one has imported it
    if peft is None:
        return None
    return next((m for m in model.modules() if isinstance(m, peft.PeftModel)), None)
