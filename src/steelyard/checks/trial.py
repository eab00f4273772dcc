"""Repeatable runs of a user's model on parts of one batch, that leave everything as it was.

Two runs can be compared when they differ in nothing but what the test changed: each starts from the
same buffers and the same seeds, and every batch is cut in the same way. Runs of equal shape take
the same kernels and the same dropout masks, so an untouched sample gives the same loss to a few
ulp; parts of another size give it up to rounding, and only where there is no randomness.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from steelyard.checks.restore import State, draws, generators_kept, seed_all
from steelyard.rows.per_sample import PerSample
from steelyard.types import Clipped

HALF = (torch.float16, torch.bfloat16)
ULPS = 64  # in losses of which nothing changed; usually they agree to the last bit
Extreme = tuple[int, float]  # position in a part, factor of its floating-point inputs


class Refused(Exception):  # noqa: N818  # a finding, not a mistake of the caller
    """The rows refuse a step, in their own words."""

    @staticmethod
    @contextmanager
    def instead() -> Iterator[None]:
        try:
            yield
        except (ValueError, FloatingPointError) as error:
            raise Refused(" ".join(str(error).split())) from error


class Trial:
    """One model, one batch of B samples, and ways to run the first on parts of the second.

    | after `with` | meaning |
    |---|---|
    | `everyone` | the indices 0 .. B-1 |
    | `base` | the losses [B] of the whole batch |
    | `ulps` | [B]: what an untouched sample's loss may differ by in a run of the same shape |
    | `tolerance` | relative: what another kernel may round differently |
    | `random` | whether chance plays a part (dropout, say) |

    Raises ValueError for a batch or losses that cannot be compared.
    """

    def __init__(
        self,
        rows: PerSample,
        model: nn.Module,
        losses_of: Callable[..., Tensor],
        batch: Sequence[Any],
        seed: int,
    ):
        self.rows, self.model, self.seed = rows, model, seed
        self._losses_of, self._batch = losses_of, tuple(batch)
        self.state = State(model)
        self._devices = sorted(
            {t.device.index for t in [*model.parameters(), *tensors(batch)] if t.is_cuda}
        )
        self.size = -1  # not known yet: nothing is cut

    def __enter__(self) -> Trial:
        self._stack = ExitStack()
        self._stack.callback(self.rows.discard)
        self._stack.callback(self.state.restore)
        self._stack.enter_context(generators_kept(self._devices))
        try:
            self._begin()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _begin(self) -> None:
        halves: list[Tensor] = []
        handles = [
            module.register_forward_hook(
                lambda module, args, out: halves.extend(t for t in tensors(out) if t.dtype in HALF)
            )
            for module in self.model.modules()
        ]
        try:
            losses = self.losses()
        finally:
            for handle in handles:
                handle.remove()
        first, grows_from_nothing = losses.detach(), losses.grad_fn is None
        self.size, self.everyone = len(first), torch.arange(len(first))
        if not any(self._is_cut(value) for value in tensors(self._batch)):
            raise ValueError(
                f"no tensor of the batch has {self.size} as its first dimension, one per loss: "
                "give the tensors of the samples as arguments, not inside losses_of"
            )
        if self.size < 2:
            raise ValueError(
                f"samples are compared with one another: give 2 or more, not {self.size}"
            )
        if grows_from_nothing:
            raise ValueError("losses do not depend on a trainable parameter (no grad_fn)")
        if not bool(first.isfinite().all()):
            i = int((~first.isfinite()).nonzero()[0])
            raise ValueError(f"the loss of sample {i} is {float(first[i])}: check the inputs first")
        self.tolerance = 1e-8 if first.dtype == torch.float64 else 1e-3
        if halves or any(p.dtype in HALF for p in self.rows.parameters):
            self.tolerance = 5e-2
        elif self._devices:
            self.tolerance = max(self.tolerance, 1e-2)  # TF32, torch's default in convolutions
        self._steady()

    def _steady(self) -> None:
        """What differs without a cause: kernels that add up in any order, and randomness."""
        self.base, again = self.losses().detach(), self.losses().detach()
        size = self.base.abs().maximum(self.base.abs().mean())
        noise = (again - self.base).abs()
        if bool((noise > 1e-3 * size).any()):
            raise ValueError(
                "losses_of gives other losses when it is called again with the same seeds (a "
                "generator of its own, a state that moves on?): make it repeatable for the check"
            )
        eps = torch.finfo(self.base.dtype).eps
        self.ulps = (ULPS if eps < 1e-4 else 2) * eps * size + 10 * noise.max()
        self.random = self._varies()

    def _varies(self) -> bool:
        """Whether chance plays a part: other losses for another seed, or numbers were drawn (what
        a loss hides, its gradient may show)."""
        one, other = (self.losses(seed=self.seed + k).detach() for k in (1, 0))
        after = draws(self._devices)
        seed_all(self.seed, self._devices)
        drawn = any(not torch.equal(a, b) for a, b in zip(after, draws(self._devices), strict=True))
        return drawn or bool(((one - other).abs() > self.ulps).any())

    # -- runs ---------------------------------------------------------------------------------

    def losses(
        self,
        index: Tensor | None = None,
        *,
        extreme: Extreme | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """Losses [len(index)], with their graph, of the samples `index` (all by default)."""
        part, expected = self._batch, self.size
        if self.size >= 0:
            chosen = self.everyone if index is None else index
            part = mapped(part, lambda value: self._selected(value, chosen, extreme))
            expected = len(chosen)
        self.rows.discard()
        self.state.restore_buffers()
        seed_all(self.seed if seed is None else seed, self._devices)
        with torch.enable_grad():
            losses = self._call(part, expected)
        if losses.dim() != 1 or (expected >= 0 and len(losses) != expected):
            wanted = "[B], one per sample" if expected < 0 else f"[{expected}]"
            raise ValueError(
                f"losses_of must return losses of shape {wanted}, found {list(losses.shape)}: use "
                'reduction="none", and average over each sample\'s own positions only'
            )
        return losses

    def taken(
        self,
        index: Tensor | None = None,
        *,
        extreme: Extreme | None = None,
        silent: int | None = None,
    ) -> Clipped:
        """What the rows hand to the mechanism; silent: a sample whose loss counts zero times.

        Raises Refused where the rows refuse the step."""
        losses = self.losses(index, extreme=extreme)
        if silent is not None:
            losses = losses * (self.everyone != silent).to(losses)
        with Refused.instead():
            self.rows.backward(losses)
            return self.rows.take()

    @contextmanager
    def without_chance(self) -> Iterator[str | None]:
        """Inside, a sample has the same loss in parts of any size; in words how, or None: random
        in eval mode too."""
        if not self.random:
            yield f"in {self.mode} mode"
            return
        self.model.eval()
        try:
            if self._varies():
                self.state.restore_modes()
                yield None
            else:
                yield (
                    "in eval mode, as dropout and the like would draw other masks for a batch of "
                    "another size"
                )
        finally:
            self.state.restore_modes()

    @property
    def mode(self) -> str:
        return "training" if self.model.training else "eval"

    def differing(self, one: Tensor, other: Tensor) -> Tensor:
        """Whether the samples one[k] and other[k] differ in any tensor of the batch: bool [n]."""
        different = torch.zeros(len(one), dtype=torch.bool)
        for value in tensors(self._batch):
            if self._is_cut(value):
                a, b = (value.detach()[i.to(value.device)] for i in (one, other))
                different |= (a != b).reshape(len(one), -1).any(1).cpu()
        return different

    @property
    def floating(self) -> bool:
        """Whether a sample has inputs that can be made extreme."""
        return any(self._is_cut(v) and v.is_floating_point() for v in tensors(self._batch))

    def _is_cut(self, value: Tensor) -> bool:
        return value.dim() > 0 and value.shape[0] == self.size

    def _selected(self, value: Tensor, index: Tensor, extreme: Extreme | None) -> Tensor:
        if not self._is_cut(value):
            return value
        part = value.detach().index_select(0, index.to(value.device))
        if extreme is not None and part.is_floating_point():
            part[extreme[0]] *= extreme[1]
        return part

    def _call(self, part: Any, expected: int) -> Tensor:
        try:
            return self._losses_of(*part)
        except Exception as error:  # whatever the user's code raises; it stays attached
            if expected < 0:
                raise
            what = " ".join(str(error).split())
            raise ValueError(
                f"losses_of failed on {expected} of the {self.size} samples "
                f"({type(error).__name__}: {what}): Poisson batches have any size, and a tensor "
                f"whose first dimension is {self.size} is taken for one of samples"
            ) from error


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same structure with every tensor changed; what is no container stays itself."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, MutableMapping):
        made = copy.copy(value)
        for key in value:
            made[key] = mapped(value[key], change)
        return made
    if isinstance(value, Mapping):
        return {key: mapped(item, change) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):  # a namedtuple
        return type(value)(*(mapped(item, change) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(mapped(item, change) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: mapped(getattr(value, f.name), change) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    return value


def tensors(value: Any) -> list[Tensor]:
    """Every tensor of a structure, in order."""
    if isinstance(value, Tensor):
        return [value]
    parts: Iterable[Any] = ()
    if isinstance(value, Mapping):
        parts = value.values()
    elif isinstance(value, list | tuple):
        parts = value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = (getattr(value, f.name) for f in dataclasses.fields(value))
    return [tensor for part in parts for tensor in tensors(part)]
