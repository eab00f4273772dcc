"""One training per method."""

from __future__ import annotations

import sys

import pytest
import torch

from steelyard.trials import rates
from steelyard.trials.rates import METHODS, decay, train
from steelyard.trials.tasks import Task


def setting(method: str, **changes):
    one = {"task": "images", "method": method, "optimizer": "sgd", "rate": 0.05, "seed": 0}
    return one | {"steps": 12} | changes


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns(method):
    if method.startswith(("schedulefree", "prodigy")):
        pytest.importorskip({"s": "schedulefree", "p": "prodigyopt"}[method[0]])
    rate = 1e-3 if method.startswith("prodigy") else 0.05
    found = train(**setting(method, rate=rate, steps=40))
    assert not found["diverged"]
    assert found["loss"] < 2.2
    assert 0.1 < found["accuracy"] <= 1
    assert found["seconds"] > 0
    assert ("rates" in found) == method.startswith("gen")


def test_constant_is_the_plain_loop():
    torch.manual_seed(0)
    job = Task("images", 0)
    optimizer = torch.optim.SGD(job.model.parameters(), lr=0.05, momentum=0.9)
    for _, batch in zip(range(12), job.batches(), strict=False):
        optimizer.zero_grad()
        job.losses(batch).mean().backward()
        optimizer.step()
    assert train(**setting("constant"))["loss"] == job.test()["loss"]


def test_gen_draws_its_probes_from_between_the_gradients_batches(monkeypatch):
    seen: list[torch.Tensor] = []

    class Watched(Task):
        def losses(self, indices):
            if not any(indices is one for one in seen):
                seen.append(indices)
            return super().losses(indices)

    monkeypatch.setattr(rates, "Task", Watched)
    train(**setting("gen", steps=10, bootstrap=3, every=4))
    assert len(seen) == 10 + 3 + 2  # steps 1, 2, 3 and 4, 8
    flat = torch.cat(seen)
    assert len(flat.unique()) == len(flat)


def test_a_divergence_has_no_loss():
    found = train(**setting("constant", rate=1e12))
    assert found["diverged"]
    assert found["loss"] is None
    assert found["accuracy"] is None


def test_the_decay_begins_at_the_warm_up_and_ends_at_nothing():
    f = decay("cosine", 100, 0.1)
    assert f is not None
    assert [f(0), f(10)] == pytest.approx([0.1, 1])
    assert f(99) < 0.001
    assert decay("constant", 100) is None


def test_unknown_names_and_missing_packages_are_told(monkeypatch):
    with pytest.raises(ValueError, match="unknown method 'newton'"):
        train(**setting("newton"))
    monkeypatch.setitem(sys.modules, "schedulefree", None)
    with pytest.raises(ImportError, match="schedulefree is not installed"):
        train(**setting("schedulefree"))


def test_a_rewound_bootstrap_leaves_only_its_rate():
    """A run that ends with its bootstrap is tested at the first weights."""
    kept = train(**setting("gen", steps=6, bootstrap=6))
    rewound = train(**setting("gen", steps=6, bootstrap=6, rewind=True))
    assert rewound["loss"] == Task("images", 0).test()["loss"] != kept["loss"]
    assert rewound["rates"] == kept["rates"]
