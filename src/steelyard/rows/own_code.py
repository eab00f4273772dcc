"""Runs a module's own code again, sample by sample, for the rows of its bare parameters.

    g_i = d/dp <results(p; sample i), gradients of the results>

`results`: what the own code hands to its children, then what it returns (`frames`). Children are
stand-ins that return what they returned in the forward pass, so nothing of theirs runs again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.utils._pytree import tree_flatten, tree_unflatten

from steelyard.rows.reference import accumulator
from steelyard.rows.uses import BatchMismatchError, half
from steelyard.rules.factors import Dense, Factor

if TYPE_CHECKING:
    from steelyard.rows.frames import Frame


class FrameArrived:
    """A frame whose gradients are complete."""

    def __init__(self, frame: Frame, saved: tuple[Tensor, ...], came: list[Tensor | None]):
        self._frame, self._saved, self._came = frame, saved, came
        self.key = id(frame)
        self.rough = any(g is not None and half(g) for g in came)

    def turnable(self, batch: int) -> None:
        return None

    def gradients(self, batch: int) -> list[Tensor]:
        frame, found = self._frame, []
        places = [place for place, wanted in enumerate(frame.places) for _ in wanted]
        for place, g in zip(places, self._came, strict=True):
            if g is None:
                continue
            if g.dim() == 0 or g.shape[0] != batch:
                child = frame.calls[place] if place < len(frame.calls) else None
                raise self._mismatch(
                    f"hands on a tensor of shape {list(g.shape)} for {batch} samples", child
                )
            found.append(g)
        return found

    def factors(self, batch: int) -> dict[str, list[Factor]]:
        self.gradients(batch)
        frame, owner = self._frame, self._frame.owner
        if frame.spec is None or len(self._saved) != len(frame.tensors):
            raise self._mismatch("returns nothing that the losses depend on")
        dims = [self._mapped(i, t, batch) for i, t in enumerate(self._saved)]
        # run again, the own code must not change in place what the graph still needs
        saved = [t.clone() if owner.modifies else t for t in self._saved]
        versions = [t._version for t in saved]
        inputs = [t.unsqueeze(1) if m else t for t, m in zip(saved, dims, strict=True)]
        targets = [None if g is None else g.unsqueeze(1) for g in self._came]
        parameters = {name: p.detach() for name, p in owner.parameters.items()}
        device, on, dtype = frame.autocast

        def projected(parameters: dict[str, Tensor], inputs: Any, targets: Any) -> Tensor:
            with torch.autocast(device, dtype=dtype, enabled=on):
                results = own_code(frame, parameters, inputs)
            total = torch.zeros((), dtype=torch.float64 if _double(results) else torch.float32)
            total = total.to(results[0].device)
            for result, target in zip(results, targets, strict=True):
                if target is not None:
                    if result.numel() != target.numel():  # broadcast over what is no sample's own
                        raise RuntimeError("its results have another shape for one sample")
                    total = total + (result.reshape(target.shape) * target).sum(dtype=total.dtype)
            return total

        in_dims = (
            None,
            [0 if m else None for m in dims],
            [None if g is None else 0 for g in targets],
        )
        try:
            with _no_random_numbers(device):
                rows = (
                    None
                    if owner.by_turns
                    else self._at_once(projected, in_dims, parameters, inputs, targets)
                )
                if rows is None:
                    rows = self._by_turns(projected, dims, parameters, inputs, targets, batch)
            changed = versions != [t._version for t in saved]
            if changed and not owner.modifies:
                raise RuntimeError("it changes its inputs in place, but not always")
            owner.modifies = changed
        except Exception as error:
            why = (str(error) or type(error).__name__).splitlines()[0][:120]
            raise self._mismatch(f"could not be run again for each sample ({why})") from error
        return {name: [Dense(row.to(accumulator(row)))] for name, row in rows.items()}

    def _at_once(self, f: Any, in_dims: Any, parameters: Any, inputs: Any, targets: Any) -> Any:
        try:
            return vmap(grad(f), in_dims=in_dims)(parameters, inputs, targets)
        except Exception:
            self._frame.owner.by_turns = (
                True  # data-dependent control flow, an unsupported operator
            )
            return None

    def _by_turns(
        self, f: Any, dims: list[bool], parameters: Any, inputs: Any, targets: Any, batch: int
    ) -> dict[str, Tensor]:
        rows = []
        for i in range(batch):
            one = [t[i] if mapped else t for t, mapped in zip(inputs, dims, strict=True)]
            rows.append(grad(f)(parameters, one, [None if g is None else g[i] for g in targets]))
        return {name: torch.stack([row[name] for row in rows]) for name in parameters}

    def _mapped(self, place: int, t: Tensor, batch: int) -> bool:
        """Whether an input has the sample dimension: not if it ever had another size there (a
        length is the number of samples by chance at times)."""
        has = t.dim() > 0 and t.shape[0] == batch
        if batch == 1:
            return has
        frame = self._frame
        key = (frame.spec, tuple(frame.tensors), place)
        frame.owner.mapped[key] = has and frame.owner.mapped.get(key, True)
        return frame.owner.mapped[key]

    def _mismatch(self, what: str, child: nn.Module | None = None) -> BatchMismatchError:
        owner = self._frame.owner
        return BatchMismatchError(
            f"the own code of module {owner.path or 'the model itself'!r} {what}",
            list(owner.parameters),
            child,
        )


def own_code(frame: Frame, parameters: Mapping[str, Tensor], tensors: list[Tensor]) -> list[Tensor]:
    """The owner's own code for one sample: what it hands to its children, then what it returns."""
    leaves = list(frame.others)
    for i, t in zip(frame.tensors, tensors, strict=True):
        leaves[i] = t
    (args, kwargs), *returned = tree_unflatten(leaves, frame.spec)
    results: list[Tensor] = []

    def pick(tree: Any, place: int) -> None:
        found = tree_flatten(tree)[0]
        results.extend(found[i] for i in frame.places[place])

    calls = iter(enumerate(frame.calls))

    def stand_in(child: nn.Module) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            place, expected = next(calls)
            assert expected is child, "the own code called another child than in the forward pass"
            pick((args, kwargs), place)
            return returned[place]

        return forward

    owner = frame.owner
    replaced = {id(p): parameters[name] for name, p in owner.parameters.items()}
    made: dict[nn.Module, nn.Module] = {}
    double = twin(owner.module, replaced, lambda m: None if m in owner.live else stand_in(m), made)
    for module, training in frame.modes.items():  # as they were in the forward pass
        if module in made:
            made[module].__dict__["training"] = training
    pick(double.forward(*args, **kwargs), len(frame.calls))
    return results


def twin(
    module: nn.Module,
    replaced: Mapping[int, Tensor],
    stand_in: Callable[[nn.Module], Callable[..., Any] | None],
    made: dict[nn.Module, nn.Module] | None = None,
) -> nn.Module:
    """A shallow copy without hooks: parameters replaced by identity, children by stand-ins.

    Whatever runs in it changes no buffer of the original.
    """
    made = {} if made is None else made
    if module in made:
        return made[module]
    double = made[module] = object.__new__(type(module))  # `copy` refuses parametrised modules
    state = double.__dict__
    state |= module.__dict__
    for key, value in module.__dict__.items():
        if "hooks" in key and isinstance(value, dict):
            state[key] = type(value)()
    state["_parameters"] = {
        name: p if p is None else replaced.get(id(p), p) for name, p in module._parameters.items()
    }
    forward = stand_in(module)
    if forward is not None:
        state["forward"] = forward
    else:
        state["_buffers"] = {n: b if b is None else b.clone() for n, b in module._buffers.items()}
    state["_modules"] = {
        name: None if child is None else twin(child, replaced, stand_in, made)
        for name, child in module._modules.items()
    }
    return double


@contextmanager
def _no_random_numbers(device: str) -> Iterator[None]:
    """Raises RuntimeError if some were drawn inside; in any case the generators are as before."""
    cuda = device == "cuda"
    python, torchs = random.getstate(), torch.get_rng_state()
    cudas = torch.cuda.get_rng_state_all() if cuda else []
    drawn = False
    try:
        yield
    finally:
        if random.getstate() != python:
            random.setstate(python)
            drawn = True
        if not torch.equal(torch.get_rng_state(), torchs):
            torch.set_rng_state(torchs)
            drawn = True
        if cuda:
            now = torch.cuda.get_rng_state_all()
            if not all(map(torch.equal, now, cudas)):
                torch.cuda.set_rng_state_all(cudas)
                drawn = True
    if drawn:
        raise RuntimeError("it draws random numbers")


def _double(results: list[Tensor]) -> bool:
    return any(r.dtype == torch.float64 for r in results)
