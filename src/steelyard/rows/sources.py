"""Public rows beside private ones: their gradient joins the released one, after the noise.

Liu, Bu, Wang, Zha, Karypis, "Coupling public and private gradient provably helps optimization",
arXiv 2310.01304; weights of it in `steelyard.weightings.coupling`.

| symbol | here |
|---|---|
| gbar_pub | mean of this step's public rows, clipped as the private ones (`clip="same"`) or not |
| ghat | what the chain hands on: the privatised mean gradient, divided by the expected batch B |
| alpha | `weight.alpha(known)`, from public or noised knowledge only |
| V_pub | variance of gbar_pub, summed over coordinates: see `steelyard.rows.spread` |

    public.backward(public losses)      gbar_pub += ...           no noise, no charge, not armed
    rows.backward(private losses)       the private sums
    optimizer.step()                    ghat <- noise( private sums / B )          paid in full
                                        combined <- alpha gbar_pub + (1 - alpha) ghat

Given the parameters, mixing is post-processing of ghat: the sensitivity of what comes out is
(1 - alpha) R / B, and the privacy spent does not depend on alpha.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from steelyard.rows.losses import Losses
from steelyard.rows.per_sample import PerSample
from steelyard.rows.spread import PublicSum
from steelyard.types import Noised, Removable, Stateful
from steelyard.weightings.clip import FlatClip
from steelyard.weightings.coupling import Known, PublicWeight, checked_alpha


class PublicRows:
    """A filter: alpha * (mean gradient of public rows) + (1 - alpha) * (what came before it).

    Put it first behind the noise, chain(Gaussian(sigma), public, ...): filters behind it then see
    the combined gradient. Behind a filter with memory it is just as private, but `OptimalWeight`
    would count noise that the filter has already taken away.

    rows: the private rows; the public ones go through the same model, parameters and groups.
    weight: see `steelyard.weightings.coupling`. batch: B_pub, the most public rows of one step (if
    more come, two steps' rows may pass for one's: RuntimeError). clip: "same" clips public rows by
    the private rule, so that both gradients estimate E[C g]; "none" takes the raw mean, which is of
    another size than the private gradient unless `scale`, a constant estimate of E[C] from public
    data, makes up for it.

    Guarantees: private sums, noise and ledger are those of a run without public rows. alpha = 0
    hands on the released gradient untouched, alpha = 1 lets nothing of it through. The divisor is
    the number of public rows that came, in however many micro-batches: no secret, unlike B's.

    | case | behaviour |
    |---|---|
    | alpha = 1 | the private step is charged all the same; a public run needs no private rows |
    | no `backward` since the last step | RuntimeError, unless alpha is 0 without measuring V_pub |
    | a public row that is not finite | FloatingPointError |

    After those errors the parameters are unchanged, though the step was charged.
    """

    def __init__(
        self,
        rows: PerSample,
        weight: PublicWeight,
        *,
        batch: int | None = None,
        clip: str = "same",
        scale: float = 1.0,
    ):
        if batch is not None and not batch > 0:
            raise ValueError(f"the public batch size must be positive, found {batch}")
        if clip not in ("same", "none"):
            raise ValueError(f"unknown clipping of public rows {clip!r}: choose same or none")
        if not 0 < scale < math.inf:
            raise ValueError(f"the scale of public rows must be positive, found {scale}")
        if clip == "same" and scale != 1:
            raise ValueError(
                f'clip="same" brings public rows to the size of private ones already, and scale '
                f'{scale} would undo that: leave scale out, or write clip="none"'
            )
        self.weight, self.batch, self.scale = weight, batch, float(scale)
        self.last_alpha: float | None = None  # of the last step, for logs
        self._rows, self._step = rows, 0
        rule = None if clip == "same" else FlatClip(math.inf)
        self._sum = PublicSum(rows, rule, weight.metric)

    @property
    def count(self) -> int:
        """Public rows since the last step."""
        return self._sum.count

    def connect(self, optimizer: Optimizer, rows: Any) -> Sequence[Removable]:
        """Called by `attach`. Raises ValueError for other rows than those it was made with, and for
        an optimizer without Adam's second moments where the weight wants their metric."""
        if rows is not self._rows:
            raise ValueError(
                "the public rows were made with other private rows than the attached ones: write "
                "PublicRows(rows, ...) with the rows that attach gets"
            )
        self._sum.connect(optimizer)
        return []

    @property
    def buffers(self) -> int:
        """Gradient-sized tensors: the sum of public rows."""
        return 1

    def backward(self, losses: Losses) -> None:
        """Add the rows of these public losses [B_pub], or of a function that returns them.

        As `rows.backward`, but nothing is noised, nothing is charged, and the step is not armed.
        """
        try:
            self._sum.add(losses)
            if self.batch is not None and self.count > self.batch:
                raise RuntimeError(
                    f"{self.count} public rows since the last step, where PublicRows was told "
                    f"batch={self.batch}: was a step left out? (public.discard() forgets its rows)"
                )
        except BaseException:
            self.discard()
            raise

    @torch.no_grad()
    def filter(self, gradient: Noised) -> Noised:
        try:
            alpha = self._alpha(gradient)
            public, factor = self._sum.tensors(), self.scale / max(self.count, 1)
        finally:
            self.discard()
        self._step, self.last_alpha = self._step + 1, alpha
        if alpha == 0:
            return gradient
        if alpha == 1:
            torch._foreach_mul_(public, factor)
            return Noised(public, 0.0, gradient.noise_multiplier)
        combined = list(gradient.tensors)
        torch._foreach_mul_(combined, 1 - alpha)
        torch._foreach_add_(combined, public, alpha=alpha * factor)
        return Noised(combined, (1 - alpha) * gradient.sensitivity, gradient.noise_multiplier)

    def _alpha(self, gradient: Noised) -> float:
        """The weight's decision; raises where there is nothing sound to weigh."""
        if not self._sum.finite:
            raise FloatingPointError(
                "a public sample's gradient is not finite (nan or inf): check the public inputs, "
                "or lower the learning rate"
            )
        if self.weight.metric is not None and not self.count:
            raise _missing("its spread is to be measured")
        sigma, variance = gradient.noise_multiplier, self._sum.variance()
        numbers = sum(t.numel() for t in gradient.tensors)
        known = Known(
            step=self._step,
            public_batch=self.count,
            batch=self._rows.expected_batch,
            public_variance=None if variance is None else self.scale**2 * variance,
            noise_variance=(sigma * gradient.sensitivity) ** 2 * numbers if sigma else 0.0,
        )
        alpha = checked_alpha(self.weight.alpha(known))
        if alpha > 0 and not self.count:
            raise _missing(f"it counts with alpha {alpha:.3g}")
        return alpha

    def discard(self) -> None:
        """Forget the public rows since the last step."""
        self._sum.clear()

    def state_dict(self) -> dict[str, Any]:
        own = self.weight.state_dict() if isinstance(self.weight, Stateful) else {}
        return {"step": self._step, "kind": type(self.weight).__name__, "weight": own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the state was saved. Raises ValueError for the state of another weight."""
        if state["kind"] != type(self.weight).__name__:
            raise ValueError(
                f"the saved weight of the public gradient is a {state['kind']}, this one a "
                f"{type(self.weight).__name__}: resume with the weight that was saved"
            )
        self.discard()
        self._step = state["step"]
        if isinstance(self.weight, Stateful):
            self.weight.load_state_dict(state["weight"])


def _missing(why: str) -> RuntimeError:
    return RuntimeError(
        f"no public.backward(losses) since the last step, but {why}: call it before "
        "optimizer.step()"
    )
