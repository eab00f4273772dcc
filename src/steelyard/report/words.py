"""What the numbers mean, in plain words: the sentences of the page that depend on the run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from steelyard.report.numerals import above, cell, count, factor, percent, plain, power, shown
from steelyard.report.read import Run, number
from steelyard.report.summary import Summary, summarize


@dataclass(frozen=True, kw_only=True)
class Notice:
    """A sentence that nobody may miss."""

    level: str  # "danger" or "note"
    title: str
    text: str


def notices(run: Run, s: Summary) -> list[Notice]:
    """Everything that limits or voids what the page says, the gravest first."""
    found = []

    def say(level: str, title: str, text: str) -> None:
        found.append(Notice(level=level, title=title, text=text))

    if not s.private:
        say("danger", "Nothing is protected.",
            "This run was trained without privacy: no gradient was clipped and no noise was added, "
            "so the model may hold, and give away, details of any training sample.")  # fmt: skip
    if s.seeded:
        say("danger", "The noise was seeded by the user: treat this run as not private.",
            "Whoever knows or guesses the seed can draw the same noise and take it away again. "
            "That is fine for a test and void as protection; the numbers below hold only for a "
            "seed that stays secret for ever.")  # fmt: skip
    if s.unbounded or s.sigma == 0:
        say("danger", "Nothing is protected.",
            "The noise was too small, or none, for any finite ε.")  # fmt: skip
    if s.private and run.ledger is None and s.complete:
        say("danger", "There is no ledger.",
            "ledger.json is missing, so what this run released was not accounted for and no "
            "guarantee can be stated. Treat the model as not private.")  # fmt: skip
    elif s.private and run.ledger is None:
        say("note", "There is no ledger yet.",
            "ε is the last that was logged; what it covers will be in ledger.json.")  # fmt: skip
    if s.epsilon is not None and s.target and s.epsilon > s.target * (1 + 1e-9):
        say("danger", "The budget was overspent.",
            f"ε = {above(s.epsilon)} was spent where {plain(s.target)} was allowed.")  # fmt: skip
    if s.delta is not None and s.n and s.delta * s.n >= 1:
        say("danger", "δ is too large.",
            f"δ = {power(s.delta)} is not below 1/n = {power(1 / s.n)}: a method that publishes "
            "one training sample at random would pass, too.")  # fmt: skip
    if not s.complete:
        planned = f" of {s.planned:,} planned" if s.planned else ""
        say("note", "This run is not finished.",
            f"There is no result.json; the last event is at step {s.steps:,}{planned}. "
            "What follows is what was written so far.")  # fmt: skip
    if run.baseline is not None and run.baseline.result is None:
        say("note", "The run without privacy is not finished.",
            f"Its last event is at step {run.baseline.last_step:,}.")  # fmt: skip
    return found


def meaning(s: Summary) -> str:
    """What (epsilon, delta) promises to one person, as the definition says and no more.

    Source: Dwork and Roth, The algorithmic foundations of differential privacy (2014), def. 2.4;
    best guess of membership: Kairouz, Oh and Viswanath, The composition theorem (2015), thm 2.1.
    """
    assert s.epsilon is not None
    delta = f", plus at most δ = {power(s.delta)}" if s.delta else ""
    secret = "As long as nobody learns the seed of the noise: if" if s.seeded else "If"
    which = f"one {'private ' if s.n_public else ''}sample of the training data"
    sentence = (
        f"{secret} {which} is about you, then whatever anybody concludes "
        f"from this model, that conclusion is at most {factor(s.epsilon)} times (eᵋ) as probable "
        f"as it would have been had your sample been left out{delta}"
    )
    certainty = best_guess(s.epsilon, s.delta or 0.0)
    return (
        f"{sentence}; someone who starts from an even guess whether your sample was used can, in "
        f"the worst case, be right {percent(certainty)} of the time."
    )


def verdict(s: Summary) -> str:
    """How to take the sentence above."""
    assert s.epsilon is not None
    loose = "A bound this wide says little by itself. " if s.epsilon > 6 else ""
    if s.feedback:
        return (
            f"{loose}Error feedback was used, accounted as its paper does: this ceiling rests on "
            "that paper's assumptions, listed below, and is not proven for every attack without "
            "them. Smaller ε and δ are better."
        )
    return (
        f"{loose}Under the assumptions below this ceiling is proven for every possible attack. It "
        "is no measurement: no attack was tried on this model. Smaller ε and δ are better."
    )


def best_guess(epsilon: float, delta: float) -> float:
    """The largest share of right guesses of membership: (e^eps + delta) / (1 + e^eps).

    From an even prior; 0.5 is a coin toss, 1 is certainty.
    """
    return min(1.0, (1.0 + delta * math.exp(-epsilon)) / (1.0 + math.exp(-epsilon)))


def not_protected(run: Run) -> list[tuple[str, str]]:
    """(what, why) of everything the epsilon of this page does not cover."""
    s = summarize(run)
    fed = (
        ", and the memory of error feedback, made of gradients without noise" if s.feedback else ""
    )
    rows = [
        ("The test set", "Its samples were read in the clear to measure the accuracy."),
        ("The search for settings",
         "Trying several learning rates, clipping norms or models on the same data and keeping the "
         "best tells something about the data; this ε counts the one run of this page only."),
        ("The design of the model",
         "Architecture, settings, the number of training samples and the number of steps are taken "
         "to be public."),
        ("People with several samples",
         "ε is for one sample. For k samples of one person, or near copies, the guarantee weakens "
         "to k times this ε, and δ grows faster still."),
        ("Facts about everybody",
         "What the data shows about people in general is learnt on purpose, and may be applied to "
         "somebody who was never in the data."),
        ("The checkpoints folder",
         "Checkpoints hold the state of the random generators, from which noise can be drawn "
         "again" + fed + ". Publish model.safetensors, never checkpoints/."),
        ("The clock",
         "How long a step took depends a little on how many samples its batch had. events.jsonl "
         "tells the time of every step."),
    ]  # fmt: skip
    if s.n_public:
        rows.insert(0, (
            "The public samples",
            f"{s.n_public:,} training samples were declared public and used in the clear.",
        ))  # fmt: skip
    if run.baseline is not None:
        rows.insert(0, (
            "The run without privacy",
            "It was trained on the same data for comparison. Its model and its curve on this page "
            "are not private: for sensitive data, delete baseline/ and publish neither.",
        ))  # fmt: skip
    return rows


def release(run: Run, s: Summary) -> list[str]:
    """The mechanism in plain sentences, from the plan's numbers."""
    ledger = run.ledger or {}
    said = []
    if run.config.get("public_first") and (ended := _public_steps(run)):
        said.append(
            f"The first {ended:,} steps trained on public samples only. They are not charged; what "
            "follows is about the steps behind them."
        )
    if ledger.get("sampling") == "poisson" and s.q:
        said.append(
            f"Every step took each of the {count(s.n)} samples with probability q = {plain(s.q)}, "
            "independently of all others (Poisson sampling)."
        )
    elif ledger.get("sampling") == "unamplified":
        said.append(
            "Batches were not drawn at random, so the accounting gives no credit for chance: "
            "every sample counts in full once an epoch."
        )
    rule = f" (rule {cell(run.config['clip'])})" if run.config.get("clip") else ""
    said.append(
        f"The gradient of each sample was clipped{rule}, so that one sample changes the sum of "
        "a step by a limited amount."
    )
    if s.sigma is not None:
        history = ledger.get("history")
        least = "at least " if isinstance(history, list) and len(history) > 1 else ""
        grid = ledger.get("noise") == "grid"
        kind = "discrete Gaussian noise, on a grid," if grid else "Gaussian noise"
        change = "the largest change that one sample can make"
        if s.feedback:
            times = number((run.result or {}).get("noise_inflation"))
            kind, change = "Gaussian noise", "the clipping bound, as accounted"
            if times is not None:
                change += f" (the noise drawn is {plain(times)} times that)"
        steps = ledger.get("steps", s.steps)
        said.append(
            f"In each of the {steps:,} steps {kind} was added to that sum, σ = {least}"
            f"{plain(s.sigma)} times {change}."
        )
    said += _behind_the_noise(run)
    if ledger.get("accountant"):
        relation = ledger.get("neighbouring_relation", "not recorded")
        said.append(
            f"The {str(ledger['accountant']).upper()} accountant added up what all steps together "
            f"give away. Two data sets are compared that differ by this: {relation}."
        )
    return said


def _behind_the_noise(run: Run) -> list[str]:
    """What became of the released gradient before the optimizer saw it."""
    said = []
    names = run.config.get("filters") or []
    if weight := run.config.get("public_weight"):
        said.append(
            f"A gradient of public samples was added to the released one (weight: {cell(weight)}). "
            "Public samples are not protected by anything; the private ones are charged as without."
        )
    if filters := [str(name) for name in names if not str(name).startswith("dice")]:
        said.append(
            f"Behind the noise it was filtered over time ({', '.join(filters)}): work on what was "
            "released already, which costs no privacy."
        )
    if len(filters) < len(names):
        said.append(
            "Error feedback was used: the sum has a larger sensitivity than its clipping says, and "
            "more noise for it; read what the guarantee rests on below."
        )
    return said


def _public_steps(run: Run) -> int:
    """Steps before the private phase, as the log has it; 0 before the switch."""
    phases = [e for e in run.of_kind("phase") if str(e.get("name", "")).startswith("private")]
    return phases[0]["step"] if phases else 0


def lead(s: Summary) -> str:
    """What was trained on what, and what came out."""
    of = f" ({s.parameters:,} parameters)" if s.parameters else ""
    if s.parameters and s.trainable and s.trainable != s.parameters:
        of = f" ({s.trainable:,} of its {s.parameters:,} parameters)"
    samples = f"{s.n:,} samples of " if s.n else ""
    if s.n and s.n_public:
        samples = f"{s.n:,} private and {s.n_public:,} public samples of "
    time = "" if s.complete else f"for {s.steps:,} of {count(s.planned)} steps "
    how = "without privacy"
    if s.private and s.epsilon is not None:
        delta = f", δ = {power(s.delta)}" if s.delta is not None else ""
        what = "with noise that is no secret, meant for" if s.seeded else "under"
        how = f"{what} differential privacy at ε = {above(s.epsilon)}{delta}"
    elif s.private:
        how = "with the steps of private training"
    text = f"The model {s.model}{of} was trained {time}on {samples}{s.data} {how}."
    if s.score is None:
        return f"{text} It has not been evaluated yet."
    if s.score.name == "perplexity":
        return f"{text} Its test perplexity is {shown(s.score)}. {difference(s)}".strip()
    right = f"It classifies {shown(s.score)} of the test samples correctly."
    return f"{text} {right} {difference(s)}".strip()


def difference(s: Summary) -> str:
    """Private against not private, in one sentence; empty where one of them is missing."""
    one, twin = s.score, s.baseline
    if not s.private or one is None or twin is None or one.name != twin.name:
        return ""
    without = "The same model trained without privacy reaches"
    if one.name != "accuracy":
        return f"{without} {shown(twin)}."
    points = 100 * (twin.value - one.value)
    size = f"{abs(points):.1f} percentage points {'higher' if points >= 0 else 'lower'}"
    return f"{without} {shown(twin)}" + (f", {size}." if s.complete else ".")
