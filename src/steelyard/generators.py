"""Owned randomness whose whole state comes from a long seed: torch generators, and cipher keys.

`torch.Generator.manual_seed` keeps 32 bits of its seed on CPUs: few enough to try them all, which
would undo what is drawn and reveal who took part. Here the state itself (624 words) is filled from
256 bits of the operating system's entropy, stretched by SHAKE-256.

The Mersenne Twister behind torch's CPU generator is not a cryptographic generator: who sees 624
consecutive words of it can continue it. What is drawn from it here, the batches, is never shown.
Noise on CPUs, which is released inside of sums, comes from a cipher: `filters/keystream.py`.
"""

from __future__ import annotations

import hashlib
import secrets

import numpy as np
import torch

WORDS = 624
# the legacy layout of the state: seed (8 bytes), left (4), seeded (4), next (8), then 64-bit words
_FIRST = 24
_SIZE = 5056


def fresh_root(seed: int | None = None) -> str:
    """256 bits from the operating system as hex digits; or, to reproduce a test, from a seed."""
    if seed is None:
        return secrets.token_hex(32)
    return hashlib.sha256(f"steelyard seed {seed}".encode()).hexdigest()


def cipher_key(root: str, purpose: str) -> bytes:
    """32 bytes, a function of (root, purpose): SHA-256, so that other purposes are independent."""
    return hashlib.sha256(f"steelyard key {root}:{purpose}".encode()).digest()


def generator(root: str, purpose: str, device: str | torch.device = "cpu") -> torch.Generator:
    """A generator on the device, a function of (root, purpose); other purposes are independent."""
    made = torch.Generator(device)
    stretched = hashlib.shake_256(f"{root}:{purpose}".encode()).digest(4 * WORDS)
    if made.device.type != "cpu":
        made.manual_seed(int.from_bytes(stretched[:8], "little") >> 1)  # counter-based: 63 bits
        return made
    made.manual_seed(0)  # left = 1, next = 0: the first draw renews all words
    state = made.get_state()
    if state.numel() != _SIZE:
        raise RuntimeError(f"unknown layout of torch's generator state ({state.numel()} bytes)")
    words = np.frombuffer(stretched, dtype="<u4").astype(np.uint64)
    words[0] |= np.uint64(0x80000000)  # the Twister must not start from all zeros
    state[_FIRST : _FIRST + 8 * WORDS] = torch.from_numpy(words.view(np.uint8).copy())
    made.set_state(state)
    return made
