"""Generators and keys: all 256 bits count, other purposes are independent, seeds reproduce."""

from __future__ import annotations

import pytest
import torch

from steelyard.generators import cipher_key, fresh_root, generator


def test_roots_are_256_bits_and_fresh_unless_seeded():
    assert len({fresh_root() for _ in range(20)}) == 20
    assert fresh_root(3) == fresh_root(3) != fresh_root(4)
    assert fresh_root(0) != fresh_root(2**40)
    for root in (fresh_root(), fresh_root(7)):
        assert len(bytes.fromhex(root)) == 32


def test_a_key_is_made_of_every_bit_of_its_root_and_of_its_purpose():
    root = fresh_root(1)
    keys = {cipher_key(root, "a"), cipher_key(root, "b")}
    keys |= {
        cipher_key(root[:i] + f"{int(root[i], 16) ^ 1:x}" + root[i + 1 :], "a") for i in range(64)
    }
    assert len(keys) == 66
    assert {len(key) for key in keys} == {32}
    assert cipher_key(root, "a") == cipher_key(root, "a")


def test_all_bits_of_the_seed_count():
    """torch's CPU generator keeps 32 bits of a plain seed: whoever tries 2^32 could tell who took
    part. So the state behind a generator must not be one that a plain seed reaches."""
    made = generator(fresh_root(), "a purpose")
    plain = torch.Generator()
    plain.manual_seed(made.initial_seed() % 2**32)
    later = torch.randn(64, generator=made)
    windows = torch.randn(12_000, generator=plain).unfold(0, 64, 1)
    assert not (windows == later).all(1).any()


@pytest.mark.parametrize("other", [("r" * 64, "b"), ("s" * 64, "a")])
def test_generators_reproduce_and_differ(other):
    def draw(root: str, purpose: str) -> torch.Tensor:
        return torch.rand(1000, generator=generator(root, purpose), dtype=torch.float64)

    first = draw("r" * 64, "a")
    assert torch.equal(first, draw("r" * 64, "a"))
    assert abs(float(torch.corrcoef(torch.stack([first, draw(*other)]))[0, 1])) < 5 / 1000**0.5
    assert abs(float(first.mean()) - 0.5) < 5 / (12 * 1000) ** 0.5
