"""MUSE: what is still said word for word, what is still known, and what leaks about membership.

Source: Shi et al. 2024, "MUSE: machine unlearning six-way evaluation for language models", arXiv
2407.06460.

    verbmem = mean ROUGE-L F1 of 128 greedy tokens behind the beginning of a forget text,
              against the first 128 tokens of how it goes on
    knowmem = mean ROUGE-L F1 of 32 greedy tokens behind examples and a question
    PrivLeak = 100 ((1 - AUC) - (1 - AUC_retrain)) / (1 - AUC_retrain), AUC of Min-K at 40 percent

ROUGE is without stemming, as in MUSE's own code (OpenUnlearning's MUSE stems: a little higher).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from torch import nn

from steelyard.bench.attacks import membership
from steelyard.bench.generation import greedy
from steelyard.bench.metrics import priv_leak, rouge_l
from steelyard.objectives.tokens import prompt_ids

Row = Mapping[str, Any]
VERBATIM_TOKENS = 128
KNOWLEDGE_TOKENS = 32


@dataclass(frozen=True)
class PrivacyLeak:
    """PrivLeak in percent, and the two AUCs that it was made of."""

    priv_leak: float
    auc: float
    reference: float


def verbmem(
    model: nn.Module,
    tokenizer: Any,
    rows: Sequence[Row],
    *,
    new_tokens: int = VERBATIM_TOKENS,
    batch: int = 16,
) -> float:
    """Verbatim memorisation. A row: "prompt", how a text begins, and "gt", how it goes on.

    Of "gt" the first `new_tokens` tokens count (a begin token among them, where the tokenizer adds
    one): more cannot be said, so a model that says a long text word for word scores 1.
    Range [0, 1]; higher: more is said word for word. Reference point: the retrained model (.20 on
    News, where the target has .58). Good: at most that, on forget texts.
    Raises: ValueError naming a row without the fields, or one that exceeds the context.
    """
    _check(rows, ("prompt", "gt"))
    prompts = [row["prompt"] for row in rows]
    ids = [prompt_ids(tokenizer, row["gt"])[:new_tokens] for row in rows]
    texts = [
        tokenizer.decode(own, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for own in ids
    ]
    return _mean_f1(model, tokenizer, prompts, texts, new_tokens, batch)


def knowmem(
    model: nn.Module,
    tokenizer: Any,
    rows: Sequence[Row],
    *,
    examples: Sequence[Row] = (),
    new_tokens: int = KNOWLEDGE_TOKENS,
    batch: int = 16,
) -> float:
    """Knowledge memorisation. Rows and examples: "question" and "answer".

    examples: answered questions in front of each question, so that the model answers in their style
    (MUSE gives some); see `in_context`. What is written ends where a further question begins.
    Range [0, 1]; higher: more is known. Reference point: the retrained model (.33 on News, where
    the target has .64). Good: at most that on forget questions, the target's on retain questions.
    Raises: as `verbmem`.
    """
    _check(rows, ("question", "answer"))
    if examples:
        _check(examples, ("question", "answer"))
    prompts = [in_context(examples, row["question"]) for row in rows]
    answers = [row["answer"] for row in rows]
    return _mean_f1(model, tokenizer, prompts, answers, new_tokens, batch, answers_only=True)


def in_context(examples: Sequence[Row], question: str) -> str:
    """MUSE's prompt: the answered examples, then the question, "Answer: " and nothing."""
    shown = (f"Question: {e['question']}\nAnswer: {e['answer']}\n\n" for e in examples)
    return "".join(shown) + f"Question: {question}\nAnswer: "


def privacy_leak(
    model: nn.Module,
    tokenizer: Any,
    members: Sequence[str],
    non_members: Sequence[str],
    *,
    retrained: nn.Module | None = None,
    attack: str = "min_k",
    batch: int = 16,
    length: int | None = None,
) -> PrivacyLeak:
    """PrivLeak: -100 still remembered, 0 as the retrained model, above 0 forgotten too hard.

    members: the forget set's texts; non_members: a hold-out of the same kind. retrained: a model
    that never saw the members; without it AUC_retrain is .5. length: texts are cut there.
    Range, reference points: `metrics.priv_leak`. Good: between -5 and 5.
    Raises: as `attacks.membership`.
    """

    options: dict[str, Any] = {"attack": attack, "batch": batch, "length": length}

    def auc(of: nn.Module) -> float:
        return membership(of, tokenizer, members, non_members, **options)["auc"]

    own = auc(model)
    reference = 0.5 if retrained is None else auc(retrained)
    return PrivacyLeak(priv_leak(own, reference), own, reference)


def _mean_f1(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str],
    answers: Sequence[str],
    new_tokens: int,
    batch: int,
    *,
    answers_only: bool = False,
) -> float:
    written = greedy(model, tokenizer, prompts, max_new_tokens=new_tokens, batch=batch)
    if answers_only:
        written = [_first_answer(text) for text in written]
    pairs = zip(answers, written, strict=True)
    return fmean(rouge_l(answer, text, stem=False).f1 for answer, text in pairs)


def _first_answer(text: str) -> str:
    for start in ("\n\n", "\nQuestion", "Question:"):  # of the next example, in MUSE's order
        text = text.partition(start)[0]
    return text


def _check(rows: Sequence[Row], fields: tuple[str, str]) -> None:
    if not rows:
        raise ValueError(f"no rows with {' and '.join(fields)}: the set is empty")
    for number, row in enumerate(rows, start=1):
        for name in fields:
            if not isinstance(row.get(name), str) or not row[name].strip():
                found = repr(row[name])[:40] if name in row else "missing"
                raise ValueError(f'row {number}: "{name}" is {found}, expected a text')
