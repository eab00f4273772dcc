"""TOFU's metrics from losses and probabilities, and how much of a text is memorised token by token.

Sources: TOFU (Maini et al. 2024, arXiv 2401.06121); extraction strength (Carlini et al. 2021, arXiv
2012.07805) and exact memorisation (Tirumala et al. 2022, arXiv 2205.10770) as OpenUnlearning
computes them (Dorna et al. 2025, arXiv 2506.12618).

| symbol | variable |
|---|---|
| CE | token-mean negative log-likelihood of an answer, per row: `losses`, `correct`, `wrong` |
| TR | `ratios`: truth ratio, one per question |
| D, p | `statistic`, `p_value` of the two-sample Kolmogorov-Smirnov test |
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import ArrayLike


def harmonic_mean(values: Sequence[float]) -> float:
    """n / sum_i 1 / x_i; 0 as soon as one value is 0.

    Range: between the least and the greatest value, nearer the least; for scores where higher is
    better. Reference point: the arithmetic mean, which it never exceeds.
    Raises: ValueError for no values, negative ones, NaN or infinity.
    """
    numbers = [float(value) for value in values]
    if not numbers or not all(math.isfinite(x) and x >= 0 for x in numbers):
        raise ValueError(f"a harmonic mean needs numbers of at least 0, found {numbers}")
    if min(numbers) == 0.0:
        return 0.0
    return len(numbers) / math.fsum(1.0 / x for x in numbers)


# -- probabilities of answers --------------------------------------------------------------------


def probability(losses: ArrayLike) -> np.ndarray:
    """exp(-CE), per row: the geometric mean of the answer's token probabilities.

    Range [0, 1]; higher: the answer is likelier, whatever its length. 1: certain of every token.
    Reference point: 1 / vocabulary for a uniform model; a retrained model's value. Good: high on
    retain rows, the retrained model's on forget rows.
    """
    return np.exp(-np.asarray(losses, dtype=np.float64))


def option_probability(correct: ArrayLike, wrong: ArrayLike) -> np.ndarray:
    """p(correct) / (p(correct) + sum of p(wrong)) with p = exp(-CE), per row.

    correct: losses [n]; wrong: losses of the m wrong options [n, m].
    Range [0, 1]; higher is better. Reference point: 1 / (m + 1), all options alike. Good: near 1.
    """
    right, others = _pair(correct, wrong)
    # softmax over options of -CE: shifted, so that large losses do not make 0 / 0
    least = np.minimum(right, others.min(axis=1))
    p = np.exp(least - right)
    return p / (p + np.exp(least[:, None] - others).sum(axis=1))


def truth_ratio(correct: ArrayLike, wrong: ArrayLike) -> np.ndarray:
    """exp(-mean CE of the wrong answers) / exp(-CE of the correct one), per question.

    correct: losses [n] of the paraphrased answer (or of the answer, where there is none); wrong:
    losses [n, m]; the geometric mean over the m wrong answers, as OpenUnlearning has it.
    Range [0, inf). 0: knows the truth; 1: truth and falsehood alike; above 1: prefers falsehood.
    Reference point: the retrained model's distribution (`forget_quality`). Good: near 0 on retain
    questions, distributed as the retrained model's on forget questions.
    """
    right, others = _pair(correct, wrong)
    with np.errstate(over="ignore"):  # infinity is the limit, and both aggregates take it
        return np.exp(right - others.mean(axis=1))


def truth_ratio_forget(ratios: ArrayLike) -> float:
    """mean of min(TR, 1 / TR), for forget questions.

    Range [0, 1]; higher: truth and falsehood are alike. 1: TR = 1 everywhere. Reference point: the
    retrained model's value. Good: that, not 1.
    """
    tr = _ratios(ratios)
    with np.errstate(divide="ignore"):
        return float(np.minimum(tr, 1.0 / tr).mean())


def truth_ratio_utility(ratios: ArrayLike) -> float:
    """mean of max(0, 1 - TR), for questions whose answers should be known. Part of model utility.

    Range [0, 1]; higher: the truth is clearly likelier. 0: falsehood is as likely everywhere.
    Reference point: the model before unlearning. Good: that.
    """
    return float(np.maximum(0.0, 1.0 - _ratios(ratios)).mean())


def truth_probability(ratios: ArrayLike) -> float:
    """mean of correct / (correct + wrong) = 1 / (1 + TR): OpenUnlearning's newer form, "prob_mean".

    Range [0, 1]; higher: the truth is likelier. Reference point: .5 for a model that cannot tell.
    Good: near 1 on retain questions, the retrained model's on forget questions.
    """
    return float((1.0 / (1.0 + _ratios(ratios))).mean())


# -- TOFU's two numbers ---------------------------------------------------------------------------


@dataclass(frozen=True)
class ForgetQuality:
    """p_value, its base-10 logarithm, the distance D in [0, 1] (effect size), both sample sizes."""

    p_value: float
    log10_p: float
    statistic: float
    questions: tuple[int, int]


def forget_quality(unlearned: ArrayLike, retrained: ArrayLike) -> ForgetQuality:
    """p of the two-sample Kolmogorov-Smirnov test between two models' truth ratios (scipy).

    unlearned, retrained: TR on the forget questions of the model and of one trained without them.
    D = the largest gap between the two distribution functions.

    Range [0, 1]; higher is better. 1: the same ratios; below .05: told apart. p depends on the
    number of questions (D = .2 has p = .4 at 40 and 2e-7 at 400): read `log10_p` with `statistic`.
    Reference point: 1 for the retrained model against itself; 1.7e-21 for TOFU's fine-tuned 1B.
    Good: above .05, with D below .1.
    `log10_p` where p is below the smallest number: the leading term log10(2) - 2 D^2 n m / (n + m)
    / ln 10.
    Raises: ValueError for no questions or ratios that are NaN.
    """
    from scipy.stats import ks_2samp

    a, b = _ratios(unlearned), _ratios(retrained)
    found = ks_2samp(a, b)
    p, gap = float(found.pvalue), float(found.statistic)  # pyright: ignore[reportAttributeAccessIssue]
    size = len(a) * len(b) / (len(a) + len(b))
    log10_p = math.log10(p) if p > 0 else math.log10(2.0) - 2.0 * gap**2 * size / math.log(10.0)
    return ForgetQuality(p, log10_p, gap, (len(a), len(b)))


def model_utility(values: Sequence[float]) -> float:
    """Harmonic mean of TOFU's nine: {retain, real authors, world facts} x {probability, ROUGE, TR}.

    TR by `truth_ratio_utility`, probabilities of the last two by `option_probability`.
    Range [0, 1]; higher is better; 0 if any is 0. Reference point: the model before unlearning (.60
    for TOFU's fine-tuned Llama 3.2 1B, .59 retrained). Good: that.
    Raises: ValueError for values outside [0, 1] or for none.
    """
    if any(not 0.0 <= value <= 1.0 for value in values):
        raise ValueError(f"model utility is of numbers from 0 to 1, found {list(values)}")
    return harmonic_mean(values)


# -- memorised tokens -----------------------------------------------------------------------------


def extraction_strength(right: ArrayLike) -> float:
    """1 - k / n: k the first position from which the argmax is the label up to the end.

    right: bool [n], argmax of the logits == label at each answer position, under teacher forcing.
    Range [0, 1]; higher: a shorter prefix is enough to extract the rest. 1: all right. Quirk of the
    public code, kept: if even the last position is wrong, k = n - 1 and the value is 1 / n, as if
    the last alone were right. 0 for no positions.
    Reference point: a retrained model's value. Good: that on forget rows, near 1 where memorising
    is wanted.
    """
    wrong = np.flatnonzero(~np.asarray(right, dtype=bool))
    n = np.asarray(right).size
    if n == 0:
        return 0.0
    k = 0 if not wrong.size else min(int(wrong[-1]) + 1, n - 1)
    return 1.0 - k / n


def exact_memorisation(right: ArrayLike) -> float:
    """Share of positions where the argmax is the label. right: as in `extraction_strength`.

    Range [0, 1]; higher: more is memorised. Reference point: a retrained model's value, which on
    natural text is far above 0 (function words are guessed). Good: that on forget rows.
    Raises: ValueError for no positions.
    """
    found = np.asarray(right, dtype=bool)
    if not found.size:
        raise ValueError("no positions: exact memorisation needs an answer of at least one token")
    return fmean(found.tolist())


def _pair(correct: ArrayLike, wrong: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    right = np.asarray(correct, dtype=np.float64)
    others = np.asarray(wrong, dtype=np.float64)
    if right.ndim != 1 or others.ndim != 2 or len(others) != len(right) or not others.size:
        raise ValueError(
            f"losses of the correct answers {list(right.shape)} and of the wrong ones "
            f"{list(others.shape)}: expected [n] and [n, m], m at least 1"
        )
    return right, others


def _ratios(ratios: ArrayLike) -> np.ndarray:
    tr = np.asarray(ratios, dtype=np.float64).ravel()
    if not tr.size or np.isnan(tr).any() or (tr < 0).any():
        raise ValueError(
            f"truth ratios must be at least one number of at least 0 each, found {tr.size} "
            f"with {int(np.isnan(tr).sum())} NaN"
        )
    return tr
