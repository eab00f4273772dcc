"""The keystream is AES-256-CTR, never repeats a block, and goes on where its position says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from steelyard.filters import keystream as module
from steelyard.filters.keystream import Keystream, pieces, refuse_foreign

ROOT = "5" * 64


def bytes_of(stream: Keystream, size: int) -> bytes:
    out = np.empty(size, np.uint8)
    stream.fill(out)
    return out.tobytes()


def test_nist_example(monkeypatch):
    """SP 800-38A, appendix F.5.5: CTR-AES256.Encrypt, the output blocks."""
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    monkeypatch.setattr(module, "cipher_key", lambda root, purpose: key)
    stream = Keystream(ROOT, "", position=0xF0F1F2F3F4F5F6F7F8F9FAFBFCFDFEFF)
    assert bytes_of(stream, 64).hex() == (
        "0bdf7df1591716335e9a8b15c860c502"
        "5a6e699d536119065433863c8f657b94"
        "1bc12c9c01610d5d0d8bd6a3378eca62"
        "2956e1c8693536b1bee99c73a31576b6"
    )


def test_the_key_is_derived_from_root_and_purpose():
    made = {
        bytes_of(Keystream(*names), 32) for names in ((ROOT, "a"), (ROOT, "b"), ("6" * 64, "a"))
    }
    assert len(made) == 3
    assert bytes_of(Keystream(ROOT, "a"), 32) in made


def test_pieces_are_the_whole_and_the_position_counts_blocks():
    """Across the size in which zeros are enciphered, too."""
    size = 200_000
    whole = bytes_of(Keystream(ROOT, "a"), size)
    stream, parts = Keystream(ROOT, "a"), b""
    for part in (16, 65_536, 65_552, 16 * 1000):
        parts += bytes_of(stream, part)
        assert stream.position == len(parts) // 16
    parts += bytes_of(Keystream(ROOT, "a", stream.position), size - len(parts))  # resumed
    assert parts == whole
    assert len({whole[i : i + 16] for i in range(0, size, 16)}) == size // 16  # no block twice


def test_words_drop_what_is_left_of_a_block():
    stream = Keystream(ROOT, "a")
    words = [stream.words(count) for count in (3, 1, 2, 0)]
    assert stream.position == 4
    flat = np.frombuffer(bytes_of(Keystream(ROOT, "a"), 64), np.uint64)
    assert np.array_equal(np.concatenate(words), flat[[0, 1, 2, 4, 6, 7]])


def test_half_a_block_is_a_mistake():
    with pytest.raises(AssertionError):
        Keystream(ROOT, "a").fill(np.empty(24, np.uint8))


def test_words_are_uniform():
    """Every bit of 20,000 words, alone and against its neighbours: 5 standard deviations."""
    words = Keystream(ROOT, "a").words(20_000)
    bits = np.unpackbits(words.view(np.uint8)).astype(float) * 2 - 1
    assert abs(bits.sum()) < 5 * len(bits) ** 0.5
    for lag in (1, 8, 64, 128, 2048):
        assert abs((bits[lag:] * bits[:-lag]).sum()) < 5 * len(bits) ** 0.5


@pytest.mark.parametrize("size", [1, 4, 7, 100])
def test_tensors_as_one_flat_row(size):
    shapes = [(2, 3), (0,), (), (5,), (1, 1), (4, 2)]
    tensors = [torch.zeros(shape, requires_grad=i == 0) for i, shape in enumerate(shapes)]
    count, lengths = 0, []
    for numbers, views in pieces(tensors, size):
        assert numbers == sum(map(len, views)) <= size
        lengths.append(numbers)
        for view in views:
            view[...] = np.arange(count, count + len(view))
            count += len(view)
    assert torch.equal(torch.cat([t.detach().flatten() for t in tensors]), torch.arange(21.0))
    assert all(length == size for length in lengths[:-1])


def test_no_tensors_no_pieces():
    assert list(pieces([], 4)) == list(pieces([torch.zeros(0)], 4)) == []


GOOD = {"kind": "noise", "root": ROOT, "position": 3, "seeded": False}


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("nonsense", "found str"),
        ({"root": ROOT, "streams": {}}, r"found \['root', 'streams'\], expected \['kind'"),
        ({**GOOD, "extra": 1}, "extra"),
        ({**GOOD, "kind": "grid"}, "its kind is 'grid', here 'noise'"),
        ({**GOOD, "position": 1.5}, "position is a float"),
        ({**GOOD, "position": True}, "position is a bool"),
        ({**GOOD, "position": -1}, "position -1"),
        ({**GOOD, "root": "77"}, "root of 2 digits"),
    ],
)
def test_foreign_states_are_refused_in_one_line(state, words):
    refuse_foreign(GOOD, {**GOOD, "position": 0}, "Noise")
    with pytest.raises(ValueError, match=f"not a saved state of Noise: .*{words}") as error:
        refuse_foreign(state, GOOD, "Noise")
    assert "\n" not in str(error.value)
