"""Gradient canaries: samples whose whole gradient lies in coordinates of their own.

The "Dirac canary" of Nasr et al., "Tight auditing of differentially private machine learning",
2023, arXiv 2302.07956. It pulls ten times as hard as the clipping bound R allows, so that rows
which are not clipped show, too.

| symbol | here |
|---|---|
| x_t | `moves[t]`: how far step t's release moved along the canary's direction, in units of R / B |
| s | `signal`: x_t without noise where the canary joined step t |
| sigma | the standard deviation of the noise on x_t |
| q | the probability of joining a step |

Among G clipping groups each has the bound R / sqrt(G), and a canary with a coordinate in one of
them is clipped to that. So there are four tables for each group of the model ("layer", "parameter",
blocks): s = sqrt(groups with a table / G), which is 0.9 rather than 1 / sqrt(G).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from steelyard.bench.canaries import coins, shuffled
from steelyard.rows.groups import Groups, partition
from steelyard.runs.problem import Problem
from steelyard.types import RowWeighting

PULL = 10.0  # gradient of a canary, in clipping bounds
TABLES = 4  # for each clipping group of the model
MEDIAN = 0.6744897501960817  # of |z|, z ~ N(0, 1)


class Planted(nn.Module):
    """A model and the auditor's K tables of one number per canary: (x, y, which) -> losses [B].

    which: int64 [B], the canary's index, or m for an ordinary sample. Canary i's loss is
    -sum_k pull[k] * tables[k][i]: its gradient is -pull at coordinates of its own, else exactly 0.
    """

    def __init__(self, problem: Problem, canaries: int, tables: int):
        super().__init__()
        self.model, self._losses = problem.model, problem.losses
        self.canaries = canaries
        self.pull = torch.ones(tables, device=problem.device)
        self.tables = nn.ModuleList(
            nn.Embedding(canaries + 1, 1, device=problem.device) for _ in range(tables)
        )
        for table in self.weights():
            nn.init.zeros_(table)

    def weights(self) -> list[nn.Parameter]:
        return [p for table in self.tables for p in table.parameters()]

    def forward(self, x: Tensor, y: Tensor, which: Tensor) -> Tensor:
        numbers = torch.cat([table(which) for table in self.tables], 1)  # [B, K]
        pulled = -(numbers * self.pull).sum(1)
        return torch.where(which < self.canaries, pulled, self._losses(self.model, x, y))


class GradientCanaries:
    """Mode "gradient": ordinary samples of the training set, and m that touch the tables alone."""

    def __init__(
        self,
        problem: Problem,
        canaries: int,
        ordinary: int | None,
        seed: int,
        *,
        weighting: RowWeighting,
        groups: Groups,
    ):
        self.problem, self.included = problem, coins(canaries, seed)
        self.ordinary = problem.n if ordinary is None else ordinary
        self._order = shuffled(problem.n, self.ordinary, seed)
        self.model = Planted(problem, canaries, _tables(problem.model, groups))
        self._expected = _expected(self.model, groups)
        self.signal = float(np.linalg.norm(self._expected))
        self.model.pull *= torch.tensor(
            [strongest(weighting.with_bound(weighting.bound * float(s))) for s in self._expected]
        ).to(self.model.pull)
        self._moves: list[np.ndarray] = []

    def losses(self, indices: Tensor) -> Tensor:
        planted = indices >= self.ordinary
        x, y = self.problem.batch(self._order[torch.where(planted, 0, indices)])
        x[planted.to(x.device)] = 0  # a canary has no input; what the model makes of it is not used
        which = torch.where(planted, indices - self.ordinary, len(self.included))
        return self.model(x, y, which.to(x.device))

    def observe(self) -> None:
        along = np.zeros(len(self.included))
        for weight, s in zip(self.model.weights(), self._expected, strict=True):
            assert weight.grad is not None
            along -= s / self.signal * weight.grad[:-1, 0].double().cpu().numpy()
        self._moves.append(along)

    def scores(self, *, unit: float, q: float) -> np.ndarray:
        return evidence(np.stack(self._moves) / unit, signal=self.signal, q=q)


def evidence(moves: np.ndarray, *, signal: float, q: float) -> np.ndarray:
    """log P(moves | in) - log P(moves | out) per canary: float64 [T, m] -> [m], the best score.

        sum_t log(1 - q + q exp((2 s x_t - s^2) / (2 sigma^2))),   x_t ~ s Bernoulli(q) + sigma z

    sigma is read off the moves (their median size), not taken from the claim, so that missing
    noise sharpens the attack. moves in units of R / B, s = `signal`.
    """
    sigma = max(float(np.median(np.abs(moves))) / MEDIAN, 1e-6)
    with np.errstate(divide="ignore"):  # log 0 at q = 1
        out, step_in = np.log1p(-q), np.log(q)
    ratios = signal * (2 * moves - signal) / (2 * sigma**2)
    return np.logaddexp(out, step_in + ratios).sum(0)


def strongest(weighting: RowWeighting) -> float:
    """The gradient norm of a canary: what this rule leaves most of; above R if that is no less."""
    sizes = weighting.bound * torch.tensor([PULL, 0.999], dtype=torch.float64)
    return float(sizes[(weighting(sizes) * sizes).argmax()])


def _tables(model: nn.Module, groups: Groups) -> int:
    """One table where one group has the whole bound, and where the user's patterns decide."""
    if groups == "all" or not isinstance(groups, str | int):
        return 1
    return TABLES * len(partition(_trained(model), groups))


def _expected(model: Planted, groups: Groups) -> np.ndarray:
    """How far a clipped canary moves in each table, in units of R / B: float64 [K].

    R / sqrt(G) is the bound of each group, equally shared among the tables in it.
    """
    names = _trained(model)
    lists = partition(names, groups)
    tables = {id(p): at for at, p in enumerate(model.weights())}
    found = np.zeros(len(tables))
    for group in lists:
        mine = [tables[id(names[name])] for name in group if id(names[name]) in tables]
        found[mine] = (len(lists) * max(1, len(mine))) ** -0.5
    return found


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
