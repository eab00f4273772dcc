"""Random words for the noise: the keystream of AES-256 in counter mode.

    word block i = AES_key(i),  i = position, position + 1, ...

NIST SP 800-38A, section 6.5; as a generator of random bits: SP 800-90A, CTR_DRBG without its
reseeding. Who sees any number of words cannot tell them from coin tosses, nor find the key or other
words, unless AES-256 is broken. A block is used once: the position only grows, by whole blocks, and
is saved with the key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray
from torch import Tensor

from steelyard.generators import cipher_key

BLOCK = 16  # bytes
_ZEROS = bytes(65_536)  # enciphered, they are the keystream; the size is a trade with call overhead


class Keystream:
    """The keystream of (root, purpose) from block `position` on; see `generators.fresh_root`.

    Bit-exact on every machine of the same byte order. Not for two threads at once. A forked process
    or a copy would draw the same words again: make one object per process.
    """

    def __init__(self, root: str, purpose: str, position: int = 0):
        self.position = position
        counter = modes.CTR(position.to_bytes(BLOCK, "big"))
        self._cipher = Cipher(algorithms.AES(cipher_key(root, purpose)), counter).encryptor()

    def fill(self, out: NDArray[Any]) -> None:
        """Overwrite a contiguous row with fresh words; its size is a multiple of 16 bytes."""
        view = out.view(np.uint8).data
        assert len(view) % BLOCK == 0  # a broken block would be half lost, half used
        for start in range(0, len(view), len(_ZEROS)):
            piece = view[start : start + len(_ZEROS)]
            self._cipher.update_into(memoryview(_ZEROS)[: len(piece)], piece)
        self.position += len(view) // BLOCK

    def words(self, count: int) -> NDArray[np.uint64]:
        """`count` fresh uniform words of 64 bits; what is left of the last block is dropped."""
        out = np.empty(count + count % 2, np.uint64)
        self.fill(out)
        return out[:count]


def pieces(tensors: Sequence[Tensor], size: int) -> Iterator[tuple[int, list[NDArray[Any]]]]:
    """CPU tensors as one flat row, cut into pieces of `size` numbers: (numbers, views to write to).

    So a model of many small tensors costs as few draws as one of a single tensor.
    """
    views: list[NDArray[Any]] = []
    room = size
    for tensor in tensors:
        rest = tensor.detach().view(-1).numpy()  # rows allocate their sums contiguous
        while len(rest):
            views.append(rest[:room])
            rest, room = rest[room:], room - len(views[-1])
            if room == 0:
                yield size, views
                views, room = [], size
    if views:
        yield size - room, views


def refuse_foreign(state: Mapping[str, Any], known: Mapping[str, Any], who: str) -> None:
    """Raises ValueError unless a saved state has the names and types, and the kind, of `known`."""
    if not isinstance(state, Mapping) or state.keys() != known.keys():
        found = sorted(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
        reason = f"found {found}, expected {sorted(known)}"
    elif state["kind"] != known["kind"]:
        reason = f"its kind is {state['kind']!r}, here {known['kind']!r}"
    elif wrong := [name for name in known if type(state[name]) is not type(known[name])]:
        reason = f"{wrong[0]} is a {type(state[wrong[0]]).__name__}"
    elif not 0 <= state["position"] < 2**64 or len(state["root"]) != 64:
        reason = f"position {state['position']}, root of {len(state['root'])} digits"
    else:
        return
    raise ValueError(
        f"not a saved state of {who}: {reason}; load what this mechanism saved in this version, "
        "or start anew"
    )
