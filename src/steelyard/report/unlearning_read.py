"""The files of an unlearning run, read for its page."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steelyard.report.read import number
from steelyard.runs.events import read_events

Record = dict[str, Any]
Look = tuple[int, float, float]  # step, forget loss, retain loss


@dataclass(frozen=True, kw_only=True)
class Story:
    """What the files of a run say, losses in nats a token of the answers.

    cosines: of the two rows' gradients, by step; empty for a method with one row.
    """

    config: Record
    environment: Record
    result: Record
    samples: Record
    evaluations: list[Look]
    cosines: list[tuple[int, float]]
    rates: list[tuple[int, float]]
    time: float | None  # when it began, seconds since 1970

    @property
    def target(self) -> float | None:
        """The forget loss to stop at, if there was one."""
        return number(self.config.get("reference_loss"))

    @property
    def aim(self) -> str:
        """What the target is: the loss of a reference, or one that was given."""
        return "reference" if self.config.get("reference") else "aim"

    @property
    def limit(self) -> float | None:
        """The retain loss to stay below, if there was one."""
        return number(self.result.get("retain_limit"))

    @property
    def end(self) -> tuple[float, float]:
        """Forget and retain loss of the model that was saved."""
        after = self.result["after"]
        return after["forget_loss"], after["retain_loss"]

    @property
    def kept(self) -> list[Look]:
        """The evaluations up to the state that was saved."""
        return self.evaluations[: self._last + 1]

    @property
    def given_up(self) -> list[Look]:
        """From the state that was saved on, what was given up for it; [] where it was the last."""
        return self.evaluations[self._last :] if self._last + 1 < len(self.evaluations) else []

    @property
    def _last(self) -> int:
        same = [k for k, (_, *losses) in enumerate(self.evaluations) if tuple(losses) == self.end]
        return same[-1] if same else len(self.evaluations) - 1

    @property
    def moved(self) -> bool:
        """Whether the saved model is another than the one that the run began with."""
        return len(self.kept) > 1 or len(self.evaluations) < 2


def read(folder: Path) -> Story:
    """Raises ValueError, one line, for a folder that is no finished unlearning run."""
    found: dict[str, Record] = {}
    for name in ("config", "environment", "result", "samples"):
        path = folder / f"{name}.json"
        try:
            found[name] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(
                f"'{path.name}' is missing in '{folder}': is this the --out folder of a finished "
                "unlearning run?"
            ) from None
        except ValueError as error:
            raise ValueError(f"'{path}' is not JSON ({error}): restore it") from None
    events = read_events(folder / "events.jsonl")
    steps = [event for event in events if event["kind"] == "train"]
    return Story(
        **found,
        evaluations=[
            (e["step"], e["forget_loss"], e["retain_loss"])
            for e in events
            if e["kind"] == "eval" and None not in (e["forget_loss"], e["retain_loss"])
        ],
        cosines=[(e["step"], e["cosine"]) for e in steps if number(e["cosine"]) is not None],
        rates=[(e["step"], e["lr"]) for e in steps if number(e["lr"])],
        time=number(events[0].get("time")) if events else None,
    )
