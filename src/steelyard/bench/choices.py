"""General knowledge kept: accuracy on questions with given options, by the options' likelihood.

The stand-in for MMLU where MMLU is not at hand: TOFU's world facts and real authors (four options
each), or any rows with choices. MMLU itself has the letters as options: `Question(text with the
lettered answers, ("A", "B", "C", "D"), 2)`. Numbers of different sets cannot be compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from steelyard.bench.scoring import context_length, losses
from steelyard.data.json_lines import read_json_lines
from steelyard.objectives.tokens import encode

PROMPT = "Question: {question}\nAnswer:"


@dataclass(frozen=True)
class Question:
    """What the model reads, the options that may follow it, and the index of the right one."""

    prompt: str
    options: tuple[str, ...]
    correct: int

    def __post_init__(self) -> None:
        if len(self.options) < 2 or len(set(self.options)) < len(self.options):
            raise ValueError(f"{self.prompt!r:.60}: give two or more options, all different")
        if not 0 <= self.correct < len(self.options):
            raise ValueError(f"{self.prompt!r:.60}: no option has the index {self.correct}")


def read_questions(path: str | Path) -> list[Question]:
    """The questions of a file of JSON lines: see `questions_of`."""
    return questions_of([row for _, row in read_json_lines(path)], str(path))


def questions_of(rows: Sequence[Mapping[str, Any]], name: str = "the rows") -> list[Question]:
    """Rows as questions, of either form:

    "input", "output" and "choices" (texts, `output` among them): put as they are;
    "question", "answer" and "perturbed_answer" (wrong answers), TOFU's: put as "Question: ...
    Answer:", the options behind a blank.

    Raises: ValueError naming a row that is neither.
    """
    found = []
    for number, row in enumerate(rows, start=1):
        choices, wrong = row.get("choices"), row.get("perturbed_answer")
        if isinstance(choices, list | tuple):
            prompt, answer, options = row.get("input"), row.get("output"), list(choices)
        elif isinstance(wrong, list | tuple):
            prompt, answer, options = row.get("question"), row.get("answer"), list(wrong)
            options = [row.get("answer"), *options]
        else:
            prompt, answer, options = None, None, []
        if not all(isinstance(text, str) for text in (prompt, answer, *options)) or (
            answer not in options
        ):
            raise ValueError(
                f"{name}, row {number}: expected texts input, output and a list choices with the "
                "output in it, or question, answer and a list perturbed_answer"
            )
        correct = options.index(answer)
        if not isinstance(choices, list | tuple):
            prompt, options = PROMPT.format(question=prompt), [f" {text}" for text in options]
        found.append(Question(str(prompt), tuple(options), correct))
    return found


def choice_accuracy(
    model: nn.Module,
    tokenizer: Any,
    questions: Sequence[Question],
    *,
    batch: int = 16,
    between: str = "",
) -> float:
    """Share of questions whose right option is the likeliest behind the prompt.

    Options compete by exp(-CE), CE the mean over their tokens, so length does not count. Where k of
    them tie for the likeliest, the right one among them counts 1 / k. between: as in `encode`.

    Range [0, 1]; higher is better. Reference points: 1 / options for a model that knows nothing,
    and the model before unlearning. Good: that.
    Raises: ValueError for no questions, a question longer than the model's context, or losses that
    are NaN.
    """
    if not questions:
        raise ValueError("no questions: the set is empty")
    rows = [
        {"id": f"question {number}", "input": q.prompt, "output": option}
        for number, q in enumerate(questions, start=1)
        for option in q.options
    ]
    length = context_length(model) or 1 << 30
    tokens = encode(tokenizer, rows, length=length, end=False, between=between)
    scores = losses(model, tokens, batch=batch)
    if np.isnan(scores).any():
        raise ValueError("losses of the questions' options are NaN: the model diverged")
    ends = np.cumsum([len(question.options) for question in questions])[:-1]
    right = 0.0
    for question, own in zip(questions, np.split(scores, ends), strict=True):
        best = own == own.min()
        right += best[question.correct] / best.sum()
    return float(right) / len(questions)
