"""The numbers of a run that the page speaks about, each looked up once and never guessed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import PurePath

from steelyard.report.read import Record, Run, number

TABLES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".txt")


@dataclass(frozen=True, kw_only=True)
class Score:
    """A test result: accuracy as a fraction, or perplexity where there are no classes."""

    name: str  # "accuracy" or "perplexity"
    value: float
    half_width: float | None = None  # of the 95 % range that `n` test samples leave, as a fraction
    n: int | None = None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """None stands for "not recorded"."""

    model: str
    data: str
    private: bool
    complete: bool
    seeded: bool  # the user chose the seed of the noise: no secret, no protection
    unbounded: bool  # the ledger knows no finite epsilon
    epsilon: float | None
    delta: float | None
    target: float | None
    sigma: float | None  # the least of the run
    q: float | None  # the largest of the run
    n: int | None
    n_public: int  # samples that nothing protects, beside the n
    feedback: bool  # error feedback: more noise is drawn than its sigma says
    steps: int
    planned: int | None
    parameters: int | None
    trainable: int | None
    seconds: float | None
    speed: float | None  # samples per second
    score: Score | None
    baseline: Score | None

    @property
    def protected(self) -> bool:
        """Whether the page may claim a guarantee: a finite epsilon by secret noise."""
        return self.private and self.epsilon is not None and self.sigma != 0 and not self.seeded


def summarize(run: Run) -> Summary:
    """Look the numbers up: result.json first, then the ledger, the start event, the settings."""
    result, ledger, start = run.result or {}, run.ledger or {}, run.start
    logged = [value for e in run.events if (value := number(e.get("epsilon"))) is not None]
    if run.ledger is not None:
        epsilon = number(ledger.get("epsilon"))  # no fall-back: null there means unbounded
    else:
        epsilon = None if run.result is not None else max(logged, default=None)
    return Summary(
        model=short(result.get("model", run.config.get("model"))),
        data=short(result.get("data", run.config.get("data"))),
        private=run.private,
        complete=run.result is not None,
        seeded=run.private
        and (bool(ledger.get("noise_seeded_by_user")) or run.config.get("noise_seed") is not None),
        unbounded=run.ledger is not None and epsilon is None,
        epsilon=epsilon if run.private else None,
        delta=_first("delta", ledger, result, run.config) if run.private else None,
        target=_first("target", ledger),
        sigma=_first("sigma", ledger) if run.private else None,
        q=_first("q", ledger) if run.private else None,
        n=_whole(_first("n", start, ledger)),
        n_public=_public(run),
        feedback=any(str(one).startswith("dice") for one in run.config.get("filters") or []),
        steps=_whole(_first("steps", result)) or run.last_step,
        planned=_whole(_first("steps", start, run.config)),
        parameters=_whole(_first("parameters", result, start)),
        trainable=_whole(_first("trainable", result, start)),
        seconds=_first("seconds", result),
        speed=_first("samples_per_s", result),
        score=score(run),
        baseline=score(run.baseline) if run.baseline is not None else None,
    )


def _public(run: Run) -> int:
    """Public samples that the run trained on."""
    used = run.config.get("public_weight") is not None or run.config.get("public_first")
    return (_whole(_first("n_public", run.result or {}, run.start)) or 0) if used else 0


def score(run: Run) -> Score | None:
    """The final test result, or the latest evaluation of a run that has not finished."""
    evaluations = run.of_kind("eval")
    latest = evaluations[-1] if evaluations else {}
    n = _whole(_first("n", latest))
    accuracy = _first("test_accuracy", run.result or {})
    accuracy = _first("accuracy", latest) if accuracy is None else accuracy
    if accuracy is not None:
        return Score(name="accuracy", value=accuracy, half_width=half_width(accuracy, n), n=n)
    perplexity = _first("test_perplexity", run.result or {})
    perplexity = _first("perplexity", latest) if perplexity is None else perplexity
    return None if perplexity is None else Score(name="perplexity", value=perplexity, n=n)


def half_width(share: float, n: int | None, z: float = 1.96) -> float | None:
    """Half the Wilson interval: z sqrt(p(1-p)/n + z^2/4n^2) / (1 + z^2/n) for a share p of n.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference,
    Journal of the American Statistical Association (1927).
    """
    if not n or not 0 <= share <= 1:
        return None
    return z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)


def _first(key: str, *records: Record) -> float | None:
    found = (number(record.get(key)) for record in records)
    return next((value for value in found if value is not None), None)


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def short(name: object) -> str:
    """A model or data set as the headline names it: of a path, the last part."""
    text = "unnamed" if name is None else str(name)
    path = PurePath(text)
    return path.name if path.is_absolute() or path.suffix in TABLES else text
