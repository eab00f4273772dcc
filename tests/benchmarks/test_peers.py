"""Every engine of the benchmark does the same work, and one that does not is found out."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from lib.engines import OURS, Kind, Settings
from lib.opacus_engines import OPACUS
from lib.peers import PEERS
from lib.truth import TOLERANCE, Truth, check
from torch import nn

from steelyard.models import Task, build

EXACT = {**OURS, **PEERS}
pytestmark = pytest.mark.filterwarnings("ignore")  # torch's, of vmap and of Opacus' hooks


@pytest.mark.parametrize("name", [name for name in EXACT if name != "plain"])
def test_the_clipped_gradient_is_right(small, name):
    assert check(EXACT[name], small, Truth(small)) < 1e-5


@pytest.mark.parametrize("name", OPACUS)
def test_opacus_is_set_up_right(linear, name):
    pytest.importorskip("opacus")
    assert check(OPACUS[name], linear, Truth(linear)) < 1e-5  # its norms have 1e-6 added


def test_half_of_the_samples_are_clipped(small):
    truth = Truth(small)
    norms = truth._squares.sum(1).sqrt()
    assert 0 < int((norms > truth.bound).sum()) < len(norms)


def test_an_engine_that_does_not_clip_is_wrong(linear):
    unclipped = Kind(label="", family="peer", make=OURS["plain"].make)
    assert check(unclipped, linear, Truth(linear)) > 100 * TOLERANCE


@pytest.mark.parametrize("name", ["peer-ghost", "peer-vmap", "peer-loop", "steelyard"])
def test_noise_has_the_scale_of_the_others(name):
    """sigma R / B on every parameter; 5 standard deviations of 60,000 draws are 1.5 %."""
    from lib.workloads import Workload

    workload = Workload(
        name="flat",
        about="",
        model=lambda: nn.Linear(6000, 10),
        batch=lambda: (torch.zeros(4, 6000), torch.randint(0, 10, (4,))),
    )
    engine = EXACT[name].make(workload, Settings(bound=2.0, sigma=3.0, rate=0.0))
    noise = engine.gradients()["weight"]  # zero inputs: nothing else is in it
    assert float(noise.std()) == pytest.approx(3.0 * 2.0 / 4, rel=0.015)


def test_peers_refuse_what_they_do_not_know(linear):
    task = Task(kind="language", shape=(6,), vocabulary=11)
    tied = dataclasses.replace(
        linear, model=lambda: build("gpt", task, seed=0, layers=1, width=8, heads=2, tied=True)
    )
    with pytest.raises(ValueError, match="second use"):
        PEERS["peer-ghost"].make(tied, Settings())
    strange = dataclasses.replace(linear, model=lambda: nn.Sequential(nn.PReLU(), nn.Linear(5, 10)))
    with pytest.raises(ValueError, match="PReLU"):
        PEERS["peer-fast"].make(strange, Settings())
