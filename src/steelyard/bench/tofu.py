"""TOFU: truth ratio, forget quality and model utility of a model, from question rows.

Source: Maini et al. 2024, "TOFU: a task of fictitious unlearning for LLMs", arXiv 2401.06121.

    TR_i = exp(CE of the right answer - mean CE of the wrong ones)
    forget quality = p of the KS test between TR of the unlearned and of the retrained model
    model utility = harmonic mean of {retain, real authors, world facts} x {probability, ROUGE, TR}

A row: "question", "answer", "perturbed_answer" (wrong answers, the same number in every row) and
perhaps "paraphrased_answer", which then is the right answer of the truth ratio.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from torch import nn

from steelyard.bench.generation import greedy
from steelyard.bench.metrics import (
    ForgetQuality,
    forget_quality,
    model_utility,
    option_probability,
    probability,
    rouge_l,
    truth_ratio,
    truth_ratio_utility,
)
from steelyard.bench.scoring import context_length, losses
from steelyard.objectives.tokens import between_of, encode

__all__ = ["ForgetQuality", "Style", "Utility", "forget_quality", "truth_ratios", "utility"]

Row = Mapping[str, Any]
SETS = ("retain", "real_authors", "world_facts")


@dataclass(frozen=True, kw_only=True)
class Style:
    """How questions are put, and how much at once; the same for every model that is compared.

    prompt: with {question}. between: text in front of answers, as in `encode`; default: what
    `between_of` finds for the tokenizer. template: use its chat template on the prompt. new_tokens:
    the most that is generated (TOFU: 200). end: the end token counts as part of the answer. batch:
    rows of a forward pass.
    """

    prompt: str = "Question: {question}\nAnswer:"
    between: str | None = None
    template: bool = False
    end: bool = False
    new_tokens: int = 200
    batch: int = 16


STYLE = Style()


@dataclass(frozen=True)
class Utility:
    """Model utility and the nine numbers: set -> "probability", "rouge", "truth_ratio"."""

    utility: float
    parts: dict[str, dict[str, float]]

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def truth_ratios(
    model: nn.Module, tokenizer: Any, rows: Sequence[Row], style: Style = STYLE
) -> np.ndarray:
    """TR of each row, float64 [n]: input of `forget_quality` and of the aggregates in `metrics`.

    Raises: ValueError naming a row without the fields, or with more tokens than the context.
    """
    _check(rows)
    right = [row.get("paraphrased_answer", row["answer"]) for row in rows]
    return truth_ratio(
        _losses(model, tokenizer, rows, [[text] for text in right], style)[:, 0],
        _losses(model, tokenizer, rows, [row["perturbed_answer"] for row in rows], style),
    )


def utility(
    model: nn.Module,
    tokenizer: Any,
    *,
    retain: Sequence[Row],
    real_authors: Sequence[Row],
    world_facts: Sequence[Row],
    style: Style = STYLE,
) -> Utility:
    """TOFU's model utility of `model`: see `metrics.model_utility` for range and reference points.

    probability: exp(-CE) of the answers, on real authors and world facts over the options'; rouge:
    ROUGE-L recall of greedy answers; truth_ratio: mean of max(0, 1 - TR).
    Raises: as `truth_ratios`.
    """
    given = dict(zip(SETS, (retain, real_authors, world_facts), strict=True))
    for name, rows in given.items():
        _check(rows, name)
    parts: dict[str, dict[str, float]] = {}
    for name, rows in given.items():
        answers = [[row["answer"]] for row in rows]
        correct = _losses(model, tokenizer, rows, answers, style)[:, 0]
        if name == "retain":
            likely = probability(correct)
        else:
            wrong = [row["perturbed_answer"] for row in rows]
            likely = option_probability(correct, _losses(model, tokenizer, rows, wrong, style))
        parts[name] = {
            "probability": float(likely.mean()),
            "rouge": fmean(_rouge(model, tokenizer, rows, style)),
            "truth_ratio": truth_ratio_utility(truth_ratios(model, tokenizer, rows, style)),
        }
    return Utility(model_utility([x for part in parts.values() for x in part.values()]), parts)


def _rouge(model: nn.Module, tokenizer: Any, rows: Sequence[Row], style: Style) -> list[float]:
    written = greedy(
        model,
        tokenizer,
        [style.prompt.format(question=row["question"]) for row in rows],
        max_new_tokens=style.new_tokens,
        batch=style.batch,
        template=style.template,
    )
    return [rouge_l(row["answer"], text).recall for row, text in zip(rows, written, strict=True)]


def _losses(
    model: nn.Module,
    tokenizer: Any,
    rows: Sequence[Row],
    answers: Sequence[Sequence[str]],
    style: Style,
) -> np.ndarray:
    """CE of each row's answers: float64 [n, m]."""
    asked = [
        {"input": style.prompt.format(question=row["question"]), "output": answer}
        for row, own in zip(rows, answers, strict=True)
        for answer in own
    ]
    tokens = encode(
        tokenizer,
        asked,
        length=context_length(model) or 1 << 30,
        end=style.end,
        template=style.template,
        between=_between(tokenizer, style),
    )
    return losses(model, tokens, batch=style.batch).reshape(len(rows), -1)


def _between(tokenizer: Any, style: Style) -> str:
    if style.between is not None:
        return style.between
    return "" if style.template else between_of(tokenizer)


def _check(rows: Sequence[Row], name: str = "the rows") -> None:
    if not rows:
        raise ValueError(f"{name}: no questions, the set is empty")
    sizes = set()
    for number, row in enumerate(rows, start=1):
        wrong = row.get("perturbed_answer")
        texts = [row.get("question"), row.get("answer"), row.get("paraphrased_answer", "-")]
        texts += wrong if isinstance(wrong, list) and wrong else [None]
        if not all(isinstance(text, str) and text for text in texts):
            raise ValueError(
                f"{name}, question {number}: expected texts question and answer (and perhaps "
                "paraphrased_answer), and a list perturbed_answer of texts"
            )
        sizes.add(len(texts) - 3)
    if len(sizes) > 1:
        raise ValueError(
            f"{name}: from {min(sizes)} to {max(sizes)} wrong answers per question, give each the "
            "same number"
        )
