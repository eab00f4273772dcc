"""State in the form a checkpoint holds: plain containers, tensors that own their memory, numbers.

Also the global random states, which are the one state that belongs to no object of a run.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

_LEAVES = (str, bool, int, float, bytes, type(None))


def plain(value: Any, where: str) -> Any:
    """A copy of `value` in dicts, lists and tuples with detached CPU tensors, numbers and strings.

    Exactly what `torch.load(weights_only=True)` gives back. Dict and tuple subclasses become plain,
    NumPy scalars become numbers; a view is copied, so that its base is not saved with it.

    Raises:
        ValueError: anything else; `where` and the keys on the way name the place.
    """
    if isinstance(value, dict):
        for key in value:
            if type(key) not in (str, int):
                raise ValueError(f"{where} has the key {key!r}: use strings or integers")
        return {key: plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    if type(value) in (Tensor, torch.nn.Parameter):
        tensor = value.detach().cpu()
        if tensor.layout is not torch.strided:
            raise ValueError(f"{where} is a sparse tensor: store to_dense()")
        own = tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()
        return tensor if own else tensor.clone()
    if isinstance(value, np.generic):
        value = value.item()
    if type(value) in _LEAVES or isinstance(value, torch.dtype | torch.device):
        return value
    raise ValueError(
        f"{where} is a {type(value).__name__}: a checkpoint holds only dicts with string or "
        "integer keys, lists, tensors, numbers and strings"
    )


def untie(model: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """CPU tensors that share no memory, and tied name -> the name saved for it.

    Tied means the same memory, shape and strides. Tensors that merely overlap are saved twice.
    """
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[object, ...], str] = {}
    storages: set[tuple[torch.device, int]] = set()
    for name, value in model.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"model[{name!r}] is a {type(value).__name__}, not a tensor")
        tensor = value.detach()
        same = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and same in first:
            aliases[name] = first[same]
            continue
        first[same] = name
        storage = (tensor.device, tensor.untyped_storage().data_ptr())
        overlaps = storage in storages
        storages.add(storage)
        tensors[name] = (tensor.clone() if overlaps else tensor).cpu().contiguous()
    return tensors, aliases


def bytes_of(value: Any) -> int:
    """About what a plain value takes in a file: the tensors, and a little for all else."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size() + 512  # its record and alignment in the file
    if isinstance(value, str | bytes):
        return len(value) + 16
    if isinstance(value, dict):
        return sum(bytes_of(key) + bytes_of(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return sum(map(bytes_of, value))
    return 16


def random_states() -> dict[str, Any]:
    """The global random states of Python, NumPy (legacy) and torch (CPU; CUDA once in use).

    Bit-exact with `restore_random_states`, in plain form. The states of your own
    `torch.Generator`s go beside it, as `generator.get_state()`.

    Raises:
        ValueError: NumPy's global generator was replaced by another kind.
    """
    version, words, gauss = random.getstate()
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002 - third parties draw from it
    assert isinstance(numpy_state, dict)
    if numpy_state["bit_generator"] != "MT19937":
        raise ValueError(
            f"NumPy's global generator is {numpy_state['bit_generator']}: only MT19937 can be saved"
        )
    keys, position = numpy_state["state"]["key"], int(numpy_state["state"]["pos"])
    return {
        "python": [version, list(words), gauss],
        "numpy": {
            "keys": torch.from_numpy(keys.astype(np.int64)),
            "position": position,
            "has_gauss": int(numpy_state["has_gauss"]),
            "gauss": float(numpy_state["gauss"]),
        },
        "torch": torch.get_rng_state(),
        # CUDA that was never used has drawn nothing, and asking would start it up.
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def restore_random_states(states: dict[str, Any]) -> list[str]:
    """Go back to `random_states()`; returns one line for each state this machine cannot take."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    saved = states["numpy"]
    keys = saved["keys"].numpy().astype(np.uint32)
    legacy = ("MT19937", keys, saved["position"], saved["has_gauss"], saved["gauss"])
    np.random.set_state(legacy)  # noqa: NPY002 - third parties draw from it
    torch.set_rng_state(states["torch"])
    cuda, present = states["cuda"], torch.cuda.device_count()
    for device, state in enumerate(cuda[:present]):
        torch.cuda.set_rng_state(state, device)
    if len(cuda) > present:
        return [f"random states of {len(cuda)} CUDA devices saved, {present} here: draws differ"]
    return []
