"""LUME (SemEval-2025 Task 4): twelve scores, their aggregate, membership inference, utility, rank.

Source: Ramakrishna et al. 2025, "LUME: LLM unlearning with multitask evaluations", arXiv
2502.15097; "SemEval-2025 Task 4", arXiv 2504.02883, and its evaluation script:

    y_i <- greedy(x_i), at most 256 new tokens
    R_ks = mean ROUGE-L recall over sc rows, E_ks = mean exact match over qa rows
    aggregate = harmonic mean of 1 - R_kf, 1 - E_kf, R_kr, E_kr over the tasks k
    AUC of the loss attack on documents; mia = 1 - 2 |AUC - 1/2|
    final = (aggregate + mia + MMLU) / 3

| symbol | variable |
|---|---|
| x_i, y_i | "input" of row i; `texts[i]` |
| k, s | task; set, f (forget) or r (retain) |
| R_ks, E_ks | `scores[k][s]["regurgitation"]`, `scores[k][s]["knowledge"]` |
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from statistics import fmean
from typing import Any

from torch import nn

from steelyard.bench.attacks import check_attacks, membership
from steelyard.bench.choices import Question, choice_accuracy
from steelyard.bench.generation import greedy
from steelyard.bench.lume_data import (
    KINDS,
    Row,
    check_sets,
    counts,
    document,
    fingerprint,
    kind,
    read_documents,
    read_rows,
    subset,
)
from steelyard.bench.metrics import (
    exact_match,
    final_score,
    lume_aggregate,
    mia_score,
    rouge_l,
)
from steelyard.runs.environment import environment

__all__ = [
    "KINDS",
    "LumeResult",
    "counts",
    "document",
    "evaluate",
    "fingerprint",
    "kind",
    "read_documents",
    "read_rows",
    "score_rows",
    "subset",
]

MEASURES = {"sc": "regurgitation", "qa": "knowledge"}
PACKAGES = ("transformers", "tokenizers", "rouge-score", "nltk", "numpy", "scipy")
STAND_IN = "choice by likelihood (stands for MMLU)"
Scores = dict[str, dict[str, dict[str, float]]]


@dataclass(frozen=True, kw_only=True)
class LumeResult:
    """What `evaluate` found. `mia`, `utility` and `final` are None where they were not measured.

    scores: task -> "forget" or "retain" -> "regurgitation" or "knowledge", each in [0, 1].
    texts: what the model wrote, by set and row id; not in `to_dict`.
    """

    scores: Scores
    aggregate: float
    mia: dict[str, Any] | None
    utility: dict[str, Any] | None
    final: float | None
    counts: dict[str, dict[str, dict[str, int]]]
    data: dict[str, str]
    settings: dict[str, Any]
    model: dict[str, Any]
    environment: dict[str, Any]
    seconds: float
    texts: dict[str, dict[str, str]] = field(repr=False)

    @property
    def twelve(self) -> dict[str, float]:
        """The aggregate's terms, higher is better: "Task1 forget regurgitation": 1 - R_1f, ..."""
        return {
            f"{task} {which} {measure}": 1.0 - value if which == "forget" else value
            for task, sets in self.scores.items()
            for which, measures in sets.items()
            for measure, value in measures.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: everything but the texts."""
        found = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del found["texts"]
        return {"benchmark": "LUME", **found, "twelve": self.twelve}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)


def evaluate(
    model: nn.Module,
    tokenizer: Any,
    forget: Sequence[Row],
    retain: Sequence[Row],
    *,
    members: Sequence[str] | None = None,
    non_members: Sequence[str] | None = None,
    attack: str = "loss",
    reference_model: nn.Module | None = None,
    mmlu: float | Sequence[Question] | None = None,
    rows: int | None = None,
    seed: int = 0,
    new_tokens: int = 256,
    batch: int = 16,
    template: bool = False,
    between: str = "",
) -> LumeResult:
    """Attack the documents, answer the questions, generate for all rows, and take the means.

    model, tokenizer: a causal language model and its tokenizer, as of transformers.
    members, non_members: whole documents, forgotten ones and strangers, for `attack` (a name of
    `attacks`). mmlu: an accuracy measured elsewhere, or questions that stand for it.
    rows: at most so many of every task and kind of each set, drawn by `seed`; default: all.
    new_tokens: the most per row. A qa row stops at the bytes of its answer plus 8: a longer text
    cannot equal it (8 tokens are left for blanks). template: use the tokenizer's chat template;
    LUME's own models were trained on raw text. between: in front of the questions' options, as in
    `encode`.

    Texts are decoded as they are; the script lets the tokenizer drop blanks before punctuation.
    Guarantees: independent of `batch` and of the rows' order, up to rounding; the model is left as
    it was found. A task present in both sets counts, whatever its name: LUME has three.
    Raises: ValueError in one line for a missing tokenizer, for what `check_sets` refuses, for only
    one of members and non_members, for what `membership` refuses, for rows or questions that do not
    fit the model's context, and for a model whose scores are NaN. Quick checks come first.
    """
    began = time.perf_counter()
    if tokenizer is None:
        raise ValueError("the model came without a tokenizer: pass the one it was trained with")
    if (members is None) != (non_members is None):
        raise ValueError("members and non_members go together: an AUC compares the two")
    check_attacks([attack], reference_model)
    check_sets(forget, retain)
    if isinstance(mmlu, int | float):
        final_score(0.0, 0.0, mmlu)  # refuses what is no accuracy, before the long part
    sets = {"forget": forget, "retain": retain}
    if rows is not None:
        sets = {name: subset(given, rows, seed) for name, given in sets.items()}
    mia = None
    if members is not None and non_members is not None:
        options: dict[str, Any] = {"attack": attack, "reference_model": reference_model}
        mia = membership(model, tokenizer, members, non_members, batch=batch, **options)
        mia["score"] = mia_score(mia["auc"])
    utility = _utility(model, tokenizer, mmlu, batch, between)
    everything = [row for given in sets.values() for row in given]
    written = greedy(
        model,
        tokenizer,
        [row["input"] for row in everything],
        max_new_tokens=[_limit(row, new_tokens) for row in everything],
        batch=batch,
        template=template,
        names=[f"row {row['id']}" for row in everything],
    )
    split = len(sets["forget"])
    parts = {"forget": written[:split], "retain": written[split:]}
    scores = score_rows(sets, parts)
    aggregate = _aggregate(scores)
    final = None
    if mia is not None and utility is not None:
        final = final_score(aggregate, mia["score"], utility["accuracy"])
    parameter = next(model.parameters())
    return LumeResult(
        scores=scores,
        aggregate=aggregate,
        mia=mia,
        utility=utility,
        final=final,
        counts={name: counts(given) for name, given in sets.items()},
        data={name: fingerprint(given) for name, given in sets.items()},
        settings={
            "rows": rows,
            "seed": seed,
            "new_tokens": new_tokens,
            "batch": batch,
            "template": template,
            "between": between,
        },
        model={
            "class": type(model).__name__,
            "parameters": sum(p.numel() for p in model.parameters()),
            "dtype": str(parameter.dtype).removeprefix("torch."),
        },
        environment=environment(parameter.device) | {p: _version(p) for p in PACKAGES},
        seconds=time.perf_counter() - began,
        texts={
            name: {row["id"]: text for row, text in zip(sets[name], parts[name], strict=True)}
            for name in sets
        },
    )


def score_rows(sets: Mapping[str, Sequence[Row]], written: Mapping[str, Sequence[str]]) -> Scores:
    """R_ks and E_ks: means over the rows of each task, set and kind. written: one text per row.

    Range [0, 1] each; on forget rows lower, on retain rows higher is better. Reference point: the
    model before unlearning (near 1 everywhere) and one never trained on the forget documents.
    """
    cells: dict[tuple[str, str, str], list[float]] = {}
    for name, rows in sets.items():
        for row, text in zip(rows, written[name], strict=True):
            regurgitated = kind(row) == "sc"
            output = row["output"]
            score = rouge_l(output, text).recall if regurgitated else exact_match(output, text)
            cells.setdefault((row["task"], name, MEASURES[kind(row)]), []).append(score)
    found: Scores = {}
    for task, name, measure in sorted(cells):
        values = cells[task, name, measure]
        found.setdefault(task, {}).setdefault(name, {})[measure] = fmean(values)
    return found


def _aggregate(scores: Scores) -> float:
    terms = {
        name: [value for sets in scores.values() for value in sets[name].values()]
        for name in ("forget", "retain")
    }
    return lume_aggregate(terms["forget"], terms["retain"])


def _limit(row: Row, new_tokens: int) -> int:
    if kind(row) == "sc":
        return new_tokens
    # a token adds at least a byte
    return min(new_tokens, len(row["output"].encode("utf-8")) + 8)


def _utility(
    model: nn.Module,
    tokenizer: Any,
    mmlu: float | Sequence[Question] | None,
    batch: int,
    between: str,
) -> dict[str, Any] | None:
    if mmlu is None:
        return None
    if isinstance(mmlu, int | float):
        return {"what": "MMLU, as given", "accuracy": float(mmlu), "questions": None}
    accuracy = choice_accuracy(model, tokenizer, mmlu, batch=batch, between=between)
    return {"what": STAND_IN, "accuracy": accuracy, "questions": len(mmlu)}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
