"""Curvature of a loss around its parameters, on PUBLIC data: trace, and along the gradient.

Bu et al., "Pre-training Differentially Private Models with Limited Public Data" (DPCP), arXiv
2402.18752, sections 2 and 3; the trace: Hutchinson 1990.

| symbol | here |
|---|---|
| F, H | mean loss of the samples, its Hessian |
| g_i, G, Cov | a sample's gradient; mean and covariance (1/N) of the g_i |
| J | `preconditioner`, diagonal: the update is J g; left out: J = 1 |
| C_i, cbar | clip factor of a sample, its mean |
| z, e | random signs (or normal numbers), one for each parameter, each sample |
| K | `probes` |

    G               one backward pass
    G'J'HJG         one Hessian-vector product
    tr(J'HJ)        mean over K of (Jz)'H(Jz)
    tr(J'HJ Cov)    mean over K of (Ju)'H(Ju),  u = N^-1/2 sum_i (e_i - mean e) g_i
    cbar            mean of C_i, one pass of private rows on the copy

u is the gradient of a weighted loss: no per-sample gradient is formed, and E[uu'] = Cov.
"""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from steelyard.generators import fresh_root, generator
from steelyard.plans.landscape import Landscape
from steelyard.rows.reference import accumulator
from steelyard.steps.public_loss import PublicLoss, undisturbed
from steelyard.types import RowWeighting

PROBES = ("signs", "normal")


def measure(
    model: nn.Module,
    losses_of: Callable[..., Tensor],
    *batch: Any,
    weighting: RowWeighting | None = None,
    preconditioner: Sequence[Tensor] | None = None,
    probes: int = 10,
    probe: str = "signs",
    micro_batch: int | None = None,
    seed: int = 0,
) -> Landscape:
    """The landscape of F = mean of losses_of(model, *batch) at the model's trainable parameters.

    PUBLIC data only: the numbers are exact, not noised, so those of private samples may not be
    looked at, nor decide anything.

    losses_of(model, *batch) -> [N], one loss per sample. batch: any structure of tensors; those
    whose first dimension is N are cut into pieces of `micro_batch` samples, so that several public
    batches can be measured as one. weighting: the private phase's rule, for cbar and R (all-layer
    clipping); None: cbar = R = 1. preconditioner: the diagonal of J, one tensor per trainable
    parameter in the model's order (`adam_preconditioner`). probe: "signs" or "normal" (the paper's;
    more variance). seed: same probes, same dropout masks at every measurement, for comparison.

    Cost per piece: 2 K + 1 Hessian-vector products and K + 1 backward passes; with one piece the
    graph is built once. Memory: a few copies of the parameters and a graph of second order.

    Guarantees: model, `.grad`, buffers, and all global random generators are left as they were. A
    copy of the model that shares its parameters takes part, so private rows on the model see
    nothing, also between their backward and the step. Exact for the samples given, but for the two
    traces, which are unbiased with the standard errors returned.

    | case | behaviour |
    |---|---|
    | dropout, model in train mode | one mask per sample throughout: F is a fixed function |
    | ReLU and other kinks | their second derivative is 0 |
    | attention, recurrent layers, compiled modules | run by kernels that can be derived twice |

    Raises ValueError for probes < 2, losses that are not [N], shapes that do not fit, code
    without a second derivative, layers that private rows refuse; FloatingPointError where a number
    is not finite.
    """
    if probes < 2 or probe not in PROBES:
        raise ValueError(
            f"found probes={probes}, probe={probe!r}: use 2 or more, of {' or '.join(PROBES)}"
        )
    shared: dict[int, Any] = {id(p): p for p in model.parameters()}
    twin = copy.deepcopy(model, shared)  # its hooks of private rows rest
    with undisturbed(twin):
        loss = PublicLoss(twin, losses_of, batch, micro_batch, seed)
        J = _checked(preconditioner, loss.parameters)
        random = generator(fresh_root(seed), "curvature", loss.parameters[0].device)

        def draw(like: Tensor) -> Tensor:
            z = torch.randn(
                like.shape, generator=random, device=like.device, dtype=accumulator(like)
            )
            return z.sign() if probe == "signs" else z

        def form(v: Sequence[Tensor]) -> float:  # (Jv)'H(Jv)
            v = [j * a for j, a in zip(J, v, strict=True)] if J else v
            return _dot(v, loss.product(v))

        N = loss.size
        G = loss.gradient(torch.full_like(loss.like, 1 / N))
        traces, spreads = [], []
        for _ in range(probes):
            traces.append(form([draw(p) for p in loss.parameters]))
            e = draw(loss.like)  # [N]
            spreads.append(form(loss.gradient((e - e.mean()) / math.sqrt(N))))
        trace, trace_error = _mean(traces)
        spread, spread_error = _mean(spreads)
        return Landscape(
            squared_gradient=_dot(G, [j * g for j, g in zip(J, G, strict=True)] if J else G),
            gradient_curvature=form(G),
            spread_curvature=spread,
            trace=trace,
            clip_factor=1.0 if weighting is None else loss.clip_factor(weighting),
            bound=1.0 if weighting is None else weighting.bound,
            trace_error=trace_error,
            spread_error=spread_error,
            samples=N,
        )


def adam_preconditioner(optimizer: Optimizer) -> list[Tensor]:
    """J = 1 / (sqrt(v / (1 - beta2^t)) + eps) of Adam and AdamW, one tensor per parameter.

    In the order of the optimizer's groups: the model's, if it was given model.parameters(). Raises
    ValueError for a parameter without `exp_avg_sq` (before the first step, or other optimizers).
    """
    found = []
    for group in optimizer.param_groups:
        for p in (p for p in group["params"] if p.requires_grad):
            state = optimizer.state.get(p, {})
            if "exp_avg_sq" not in state:
                raise ValueError(
                    f"a parameter of shape {list(p.shape)} has no exp_avg_sq: take a step of Adam "
                    "or AdamW first"
                )
            v = state.get("max_exp_avg_sq", state["exp_avg_sq"])
            v = v / (1 - group["betas"][1] ** float(state["step"]))
            found.append((v.sqrt() + group["eps"]).reciprocal())
    return found


def _checked(J: Sequence[Tensor] | None, parameters: Sequence[Tensor]) -> list[Tensor] | None:
    shapes = [p.shape for p in parameters]
    if J is not None and [j.shape for j in J] != shapes:
        raise ValueError(
            f"the preconditioner has {len(J)} tensors that do not fit the {len(shapes)} trainable "
            "parameters: give one of the same shape for each, in the model's order"
        )
    return None if J is None else list(J)


def _dot(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    parts = [(a.double() * b).sum() for a, b in zip(one, other, strict=True)]
    value = float(torch.stack(parts).sum())
    if not math.isfinite(value):
        raise FloatingPointError(
            f"a curvature of the public loss is {value}: check the inputs, or measure at a smaller "
            "learning rate"
        )
    return value


def _mean(values: list[float]) -> tuple[float, float]:
    """Mean and its standard error."""
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
