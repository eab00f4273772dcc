"""How far a run is: a bar on a terminal, a plain line for every tenth of the way elsewhere."""

from __future__ import annotations

import math
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.console import Console

_LEAST_BAR = 10  # columns


class RunProgress:
    """Progress of a training run on standard error.

    On a terminal: one bar that is redrawn in place four times a second, its parts of fixed width,
    the less important ones left out where the window is narrow. Elsewhere (a file, a CI log): the
    first step, then one line for every 10 % of `total_steps`.

    A private run shows epsilon and never a training loss, which would be an unprotected release.
    `start` is the step after which a resumed run begins. The ETA is h:mm:ss of wall-clock time.
    `unit` is what the speed counts.

    Raises:
        ValueError: `total_steps` below 1, or (from `update`) a loss in a private run.
    """

    def __init__(
        self,
        total_steps: int,
        private: bool,
        console: Console | None = None,
        title: str = "training",
        *,
        target_epsilon: float | None = None,
        start: int = 0,
        unit: str = "samples",
    ) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        if total_steps < 1:
            raise ValueError(f"total_steps={total_steps}: need at least one step")
        self.total, self.private, self.title = total_steps, private, title
        self.target_epsilon, self.start, self.unit = target_epsilon, start, unit
        self.console = console or Console(stderr=True)
        self._live = self.console.is_interactive
        self._began = time.monotonic()
        self._tenths = -1  # that a plain line has shown
        self._last: dict[str, float | None] = {"epsilon": None, "loss": None, "accuracy": None}
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[status]}", markup=False),
            console=self.console,
            refresh_per_second=4,
            expand=True,
            disable=not self._live,
        )
        self._task = self._bar.add_task(title, total=total_steps, completed=start, status="")

    def update(
        self,
        step: int,
        per_s: float,
        epsilon: float | None = None,
        loss: float | None = None,
        accuracy: float | None = None,
    ) -> None:
        """Show that `step` steps are done; None keeps the last value, `accuracy` is in 0..1."""
        if self.private and loss is not None:
            raise ValueError("a private run shows no training loss: pass loss=None")
        for name, value in (("epsilon", epsilon), ("loss", loss), ("accuracy", accuracy)):
            if value is not None:
                self._last[name] = value
        if self._live:
            title, status = self._fitted(self._parts(step, per_s))
            self._bar.update(self._task, completed=step, description=title, status=status)
            return
        tenths = 10 * step // self.total
        if tenths > self._tenths:
            self._tenths = tenths
            parts = (part.strip() for part in self._parts(step, per_s).values())
            self._line(f"{self.title}: {', '.join(filter(None, parts))}")

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        self._line(text)

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        if self._live:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live:
            self._bar.stop()

    def _line(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _parts(self, step: int, per_s: float) -> dict[str, str]:
        """What is shown, in order; numbers padded so that the bar beside them stands still."""
        digits = len(f"{self.total:,}")
        parts = {
            "step": f"{step:>{digits},}/{self.total:,}",
            "speed": f"{per_s:>6,.0f} {self.unit}/s",
            "eta": f"ETA {self._remaining(step)}",
        }
        if self.private and self._last["epsilon"] is not None:
            name = "ε" if self._live and self.console.encoding.startswith("utf") else "epsilon"
            of = f" of {self.target_epsilon:.2f}" if self.target_epsilon is not None else ""
            parts["epsilon"] = f"{name} {self._last['epsilon']:.2f}{of}"
        if self._last["loss"] is not None:
            parts["loss"] = f"loss {self._last['loss']:.3f}"
        if self._last["accuracy"] is not None:
            parts["accuracy"] = f"test {100 * self._last['accuracy']:.1f} %"
        return parts

    def _fitted(self, parts: dict[str, str]) -> tuple[str, str]:
        """Title and status that leave room for a bar; the first to go is the title."""
        shown = {"title": self.title} | parts
        for name in ("title", "loss", "speed", "step", "accuracy", "eta"):
            if len("  ".join(shown.values())) + _LEAST_BAR + 2 <= self.console.width:
                break
            shown.pop(name, None)
        return shown.pop("title", ""), "  ".join(shown.values())

    def _remaining(self, step: int) -> str:
        done = step - self.start
        if done < 1:
            return "-:--:--"
        seconds = (time.monotonic() - self._began) / done * (self.total - step)
        minutes, seconds = divmod(math.ceil(max(seconds, 0.0)), 60)
        return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
