"""torchjd's weightings as they are: those installed, and a stand-in of the same call shape."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from steelyard.rows.tasks import Tasks
from steelyard.weightings.from_torchjd import refuse_misread


class StandIn(nn.Module):
    """A module whose forward takes a Gramian, as torchjd's: MGDA's closed form for two rows."""

    def forward(self, gramian, /):
        assert gramian.shape == (2, 2)
        assert gramian.dtype == torch.float64
        a, b, c = gramian[0, 0], gramian[0, 1], gramian[1, 1]
        w = ((c - b) / (a - 2 * b + c)).clamp(0, 1)
        return torch.stack([w, 1 - w])


def gradients(weighting):
    """The rows g [2, 6], and the step that Tasks makes of them."""
    torch.manual_seed(0)
    p = nn.Parameter(torch.zeros(6, dtype=torch.float64))
    g = torch.randn(2, 6, dtype=torch.float64)
    record = Tasks([p], weighting).backward(one=g[0] @ p, two=g[1] @ p)
    return g, p.grad, record


def test_a_module_on_the_gramian_is_taken_as_it_is():
    g, step, record = gradients(StandIn())
    weights = StandIn()(g @ g.T)
    torch.testing.assert_close(step, weights @ g)
    assert list(record.weights.values()) == pytest.approx(weights.tolist())
    for one in g:  # the shortest vector of the segment: a common descent direction
        assert float(one @ step) >= float(step @ step) - 1e-9


def test_torchjd_itself():
    aggregation = pytest.importorskip("torchjd.aggregation")
    for kind in ("MGDAWeighting", "IMTLGWeighting", "MeanWeighting", "SumWeighting"):
        g, step, _ = gradients(getattr(aggregation, kind)())
        torch.testing.assert_close(step, getattr(aggregation, kind)()(g @ g.T) @ g)
    own, theirs = gradients(StandIn())[1], gradients(aggregation.MGDAWeighting(1e-6, 2000))[1]
    torch.testing.assert_close(own, theirs, rtol=0, atol=1e-3)
    with pytest.raises(ValueError, match=r"^MGDA is torchjd's aggregator.*MGDAWeighting$"):
        gradients(aggregation.MGDA())
    with pytest.raises(ValueError, match=r"^MoDoWeighting weighs by whole gradients"):
        gradients(aggregation.MoDoWeighting())


def test_what_wraps_a_misreading_is_refused():
    """An aggregator's `.weighting` squares what it is given: it gave other weights in silence."""
    aggregation = pytest.importorskip("torchjd.aggregation")
    with pytest.raises(ValueError, match=r"^_Composition weighs by whole gradients"):
        gradients(aggregation.MGDA().weighting)
    with pytest.raises(ValueError, match=r"^MoDoWeighting weighs by whole gradients"):
        gradients(aggregation.CRMOGMWeighting(aggregation.MoDoWeighting()))
    inner = aggregation.MGDAWeighting()
    for good in (aggregation.MGDA().gramian_weighting, aggregation.CRMOGMWeighting(inner)):
        g, step, _ = gradients(good)
        torch.testing.assert_close(step, inner(g @ g.T) @ g)


def test_what_would_misread_a_gram_matrix_is_refused():
    def kind(name, *bases):  # as torchjd's classes look from outside
        return type(name, bases or (object,), {"__module__": "torchjd.aggregation._x"})

    with pytest.raises(ValueError, match=r"^UPGrad is torchjd's aggregator"):
        refuse_misread(kind("UPGrad", kind("Aggregator"))())
    with pytest.raises(ValueError, match=r"^SDMGradWeighting weighs by whole gradients"):
        refuse_misread(kind("SDMGradWeighting")())
    refuse_misread(kind("MGDAWeighting")())
    refuse_misread(type("Aggregator", (), {})())  # somebody else's
