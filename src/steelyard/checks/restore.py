"""What a forward pass may change, seen and undone: modes, buffers, the global random generators.

Parameters are watched, not copied: a copy of a large model costs its memory again, and no forward
pass should write to them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn


class State:
    """A model's modes and buffers, as they were when this was made."""

    def __init__(self, model: nn.Module):
        self._model = model
        self._modes = {module: module.training for module in model.modules()}
        self._buffers = {
            module: {name: (buffer, copied(buffer)) for name, buffer in module._buffers.items()}
            for module in model.modules()
        }
        self._versions = {name: (p, p._version) for name, p in model.named_parameters()}

    def restore(self) -> None:
        self.restore_modes()
        self.restore_buffers()

    def restore_modes(self) -> None:
        for module, training in self._modes.items():
            module.training = training  # not .train(): a module may override that

    @torch.no_grad()
    def restore_buffers(self) -> None:
        for module, saved in self._buffers.items():
            for name in module._buffers.keys() - saved.keys():
                del module._buffers[name]
            for name, (buffer, content) in saved.items():
                if buffer is not None and content is not None and not same(buffer, content):
                    buffer.resize_(content.shape).copy_(content)
                module._buffers[name] = buffer  # the very tensor, if a forward put another there

    def changed_buffers(self) -> dict[str, Tensor | None]:
        """The buffers that are not as they were, with what they hold now."""
        changed: dict[str, Tensor | None] = {}
        for path, module in self._model.named_modules():
            saved = self._buffers.get(module, {})
            for name, buffer in module._buffers.items():
                _, content = saved.get(name, (None, None))
                if not same(buffer, content):
                    changed[f"{path}.{name}" if path else name] = copied(buffer)
        return changed

    def changed_parameters(self) -> list[str]:
        """Names of the parameters that were written to in place."""
        return [name for name, (p, version) in self._versions.items() if p._version != version]


@contextmanager
def generators_kept(devices: Sequence[int]) -> Iterator[None]:
    """The global generators of Python, NumPy and torch (CPU, these GPUs) are restored after."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002


def seed_all(seed: int, devices: Sequence[int]) -> None:
    """A user's code draws from the global generators: now the same numbers in every run."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed every GPU
    for device in devices:
        torch.cuda.default_generators[device].manual_seed(seed)


def draws(devices: Sequence[int]) -> list[Tensor]:
    """The state of torch's global generators: another one after a draw."""
    return [
        torch.default_generator.get_state(),
        *(torch.cuda.default_generators[device].get_state() for device in devices),
    ]


def copied(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().clone()


def same(one: Tensor | None, other: Tensor | None) -> bool:
    """Equal in shape, type and every number, nan included."""
    if one is None or other is None:
        return one is other
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())
