"""One mechanism, then any number of filters: clipped -> noised -> noised -> ..."""

from __future__ import annotations

from typing import Any

from steelyard.types import Clipped, Filter, Mechanism, Noised


class Chain:
    """A mechanism followed by filters; itself a `Mechanism`. Made by `chain`."""

    def __init__(self, mechanism: Mechanism, filters: tuple[Filter, ...]):
        self.mechanism, self.filters = mechanism, filters

    @property
    def parts(self) -> list[Mechanism | Filter]:
        """What may have a `connect` of its own."""
        return [self.mechanism, *self.filters]

    def charges(self, q: float) -> list[tuple[float, float]]:
        return charges(self.mechanism, q)

    @property
    def noise_multiplier(self) -> float:
        return self.mechanism.noise_multiplier

    @property
    def seeded(self) -> bool:
        return self.mechanism.seeded

    def privatise(self, gradient: Clipped) -> Noised:
        released = self.mechanism.privatise(gradient)
        for one in self.filters:
            released = one.filter(released)
        return released

    def state_dict(self) -> dict[str, Any]:
        return {
            "mechanism": self.mechanism.state_dict(),
            "filters": [one.state_dict() for one in self.filters],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if len(state["filters"]) != len(self.filters):
            raise ValueError(
                f"the saved chain has {len(state['filters'])} filters, this one {len(self.filters)}"
            )
        self.mechanism.load_state_dict(state["mechanism"])
        for one, saved in zip(self.filters, state["filters"], strict=True):
            one.load_state_dict(saved)


def charges(mechanism: Mechanism, q: float) -> list[tuple[float, float]]:
    """(sigma, q) of everything that one step releases: one sub-sampled Gaussian, unless the
    mechanism says otherwise (error feedback)."""
    own = getattr(mechanism, "charges", None)
    return [(mechanism.noise_multiplier, q)] if own is None else own(q)


def chain(mechanism: Mechanism, *filters: Filter) -> Chain:
    """chain(Gaussian(sigma), filter, ...): the noise first, everything after it is post-processing.

    Raises ValueError when something stands before the noise, or a second mechanism follows: a
    filter in front of the noise would remember un-noised gradients, which no accounting covers.
    """
    if isinstance(mechanism, Chain):  # a chain goes on where it ended
        mechanism, filters = mechanism.mechanism, (*mechanism.filters, *filters)
    for position, one in enumerate((mechanism, *filters)):
        noisy = callable(getattr(one, "privatise", None))
        if noisy != (position == 0):
            what = "must add the noise" if position == 0 else "must not add noise again"
            raise ValueError(
                f"position {position} of the chain, {type(one).__name__}, {what}: "
                "write chain(Gaussian(sigma), filter, ...)"
            )
    return Chain(mechanism, filters)
