"""Where an unlearning run stops, and the state it goes back to when it has lost too much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from steelyard.runs.unlearn_eval import put
from steelyard.steps.stop import Stop

FLOOR = 0.1  # nats: a retain loss below it counts as this much for the tolerance


class Kept:
    """The last state of the parameters that `Stop` would keep, and the step after which it was;
    judges every evaluation.

    parameters: those that are trained; their values now are the state after step 0.
    """

    def __init__(
        self, parameters: Sequence[Tensor], *, reference: float | None, tolerance: float | None
    ):
        self._parameters = parameters
        self._stop = Stop(reference, tolerance=tolerance, floor=FLOOR)
        self.step, self._state = 0, self._copy()

    @property
    def limit(self) -> float | None:
        """The retain loss to stay below; None without a tolerance, or before `begin`."""
        return self._stop.limit

    def begin(self, first: Mapping[str, float]) -> str:
        """first: what was found before the first step. Why not to take it; "" for going on.

        Raises FloatingPointError where it is not finite: there is no state to go back to.
        """
        if why := self._stop.lost(retain=first["retain_loss"], forget=first["forget_loss"]):
            raise FloatingPointError(f"the model to start from is broken: {why}; give another one")
        why = self._stop.forgotten(first["forget_loss"])
        return why and f"{why} before the first step: the model is left as it was"

    def judge(self, step: int, found: Mapping[str, float]) -> str:
        """Why to stop after `step`; "" for going on. A state that is lost is given up for the last
        one that was not."""
        forget = found["forget_loss"]
        if why := self._stop.lost(retain=found["retain_loss"], forget=forget):
            put(self._parameters, self._state)
            return f"{why}: back to the state after step {self.step}"
        self.step, self._state = step, self._copy()
        return self._stop.forgotten(forget)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "state": self._state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self._state = state["step"], state["state"]

    def _copy(self) -> list[Tensor]:
        return [p.detach().clone() for p in self._parameters]
