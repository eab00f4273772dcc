"""The tables and number cards of the page, and curves.csv."""

from __future__ import annotations

import csv
import io
import math
from typing import Any

from steelyard.report.curves import both, label
from steelyard.report.numerals import above, cell, duration, plain, power
from steelyard.report.read import Record, Run, number
from steelyard.report.summary import Summary

Pair = tuple[str, str]
COLUMNS = ("epsilon", "accuracy", "perplexity", "loss", "n", "lr")  # of curves.csv, as recorded
ELSEWHERE = ("command", "run", "plan", "baseline")  # not settings, or in another place


def cards(s: Summary) -> list[dict[str, str]]:
    """The few numbers on top: label, value, unit, note, and the role that colours them."""
    found: list[dict[str, str]] = []

    def add(label: str, value: str, unit: str = "", note: str = "", role: str = "ink") -> None:
        found.append({"label": label, "value": value, "unit": unit, "note": note, "role": role})

    for score, private in ((s.score, s.private), (s.baseline, False)):
        if score is None:
            continue
        kind, role = ("private", "private") if private else ("not private", "plain")
        if score.name == "accuracy":
            spread = f"± {100 * score.half_width:.1f} " if score.half_width is not None else ""
            note = f"{spread}on {score.n:,} test samples" if score.n else ""
            add(f"Accuracy, {kind}", f"{100 * score.value:.1f}", "%", note, role)
        else:
            note = "on the test set; lower is better"
            add(f"Perplexity, {kind}", f"{score.value:.2f}", "", note, role)
    if s.epsilon is not None or s.unbounded:
        budget = f"of a budget of {plain(s.target)}" if s.target else ""
        add("ε spent", "∞" if s.epsilon is None else above(s.epsilon), "", budget)
    if s.delta is not None:
        below = f"1/n is {power(1 / s.n)}" if s.n else ""
        add("δ", power(s.delta), "", below)
    if s.seconds is not None:
        speed = f"{s.speed:,.0f} samples a second" if s.speed else ""
        add("Training time", duration(s.seconds), "", speed)
    return found


def evaluations(run: Run, rows: int = 20) -> tuple[list[str], list[list[float | None]]]:
    """Header and rows of a run's evaluations, thinned evenly to at most `rows` of them."""
    events = run.of_kind("eval")
    fields = ("accuracy", "perplexity", "loss", "epsilon")
    known = [f for f in fields if any(number(event.get(f)) is not None for event in events)]
    rate = run.epochs_per_step
    stride = max(1, math.ceil(len(events) / rows))
    chosen = events[(len(events) - 1) % stride :: stride]  # the last one is always among them
    body: list[list[float | None]] = []
    for event in chosen:
        epoch = [round(rate * event["step"], 2)] if rate else []
        body.append([event["step"], *epoch, *(number(event.get(field)) for field in known)])
    names = ["ε spent" if field == "epsilon" else field for field in known]
    return ["step", *(["epoch"] if rate else []), *names], body


def csv_text(run: Run) -> str:
    """The eval and train events of the run and its baseline, one a row, numbers as recorded.

    Guarantees: the training loss of a private run is left out, were it ever recorded, and so are
    times: how long a step took tells how many samples its batch had.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("run", "kind", "step", "epoch", *COLUMNS))
    for one in both(run):
        rate = one.epochs_per_step
        events = one.of_kind("eval") + one.of_kind("train")
        for event in sorted(events, key=lambda event: event["step"]):
            hidden = one.private and event["kind"] == "train"
            cells = [None if hidden and c == "loss" else number(event.get(c)) for c in COLUMNS]
            epoch = round(rate * event["step"], 4) if rate else None
            writer.writerow([label(one), event["kind"], event["step"], epoch, *cells])
    return out.getvalue()


def clip_statistics(run: Run) -> dict[str, Any]:
    """Records that are noised or public, as a table; of the others only how many there are."""
    records = [event for event in run.events if event["kind"] == "clip_statistics"]
    shown = [event for event in records if event.get("protection") in ("noised", "public")]
    latest = shown[-12:]
    fields = dict.fromkeys(
        name
        for event in latest
        for name, value in event.items()
        if name not in ("time", "step") and number(value) is not None
    )
    rows = [[e["step"], e["protection"], *(number(e.get(f)) for f in fields)] for e in latest]
    header = ["step", "protection", *(name.replace("_", " ") for name in fields)]
    refused = len(records) - len(shown)
    return {"header": header, "rows": rows, "shown": len(shown), "refused": refused}


def settings(config: Record) -> list[Pair]:
    """Every setting of the run that has a value, and the names of those that have none."""
    shown = {name: value for name, value in config.items() if name not in ELSEWHERE}
    unset = [name.replace("_", " ") for name, value in shown.items() if value is None]
    rows = labelled({name: value for name, value in shown.items() if value is not None})
    return [*rows, ("not set", ", ".join(unset))] if unset else rows


def differences(config: Record, other: Record) -> list[Pair]:
    """The settings of `other` that are not those of `config`."""
    names = [name for name in other if name not in ELSEWHERE]
    return labelled({name: other[name] for name in names if other[name] != config.get(name)})


def plan(run: Run, s: Summary) -> list[Pair]:
    """The accounting in numbers."""
    ledger = run.ledger or {}
    return labelled(
        {
            "neighbouring relation": ledger.get("neighbouring_relation"),
            "sampling": ledger.get("sampling"),
            "sampling probability q": s.q,
            "noise multiplier σ": s.sigma,
            "steps accounted": ledger.get("steps"),
            "ε spent": s.epsilon,
            "ε budget": s.target,
            "δ": None if s.delta is None else power(s.delta),
            "accountant": ledger.get("accountant"),
        }
    )


def labelled(record: Record) -> list[Pair]:
    return [(name.replace("_", " "), cell(value)) for name, value in record.items()]


def sentences(value: object) -> list[str]:
    """A list of the ledger, as text; anything else is no list."""
    return [str(item) for item in value] if isinstance(value, list) else []
