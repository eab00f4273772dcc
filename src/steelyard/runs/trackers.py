"""Optional dashboards that get the numbers of `train` and `eval` events: TensorBoard, trackio."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

TRACKERS = ("none", "auto", "tensorboard", "trackio")


class Tracker(Protocol):
    """Where numbers go beside the event log; they are public or noised, as in the log."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Record `numbers`, such as {'train/lr': 0.1}, at `step`."""
        ...

    def close(self) -> None:
        """Write what is pending."""
        ...


class TensorBoard:
    """Event files in `folder`; after a resume at a step, TensorBoard hides the later old points."""

    def __init__(self, folder: Path, resumed_at: int | None = None) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        purge = None if resumed_at is None else resumed_at + 1
        self._writer = SummaryWriter(str(folder), purge_step=purge)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class Trackio:
    """A run `name` of the project 'steelyard' in trackio's own local store."""

    def __init__(self, name: str, resumed_at: int | None = None) -> None:
        import trackio  # pyright: ignore[reportMissingImports] - an optional extra

        self._trackio: Any = trackio
        trackio.init(
            project="steelyard", name=name, resume="never" if resumed_at is None else "allow"
        )

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._trackio.log(dict(numbers), step=step)

    def close(self) -> None:
        self._trackio.finish()


def find_tracker(
    choice: str, folder: str | Path, name: str, resumed_at: int | None = None
) -> Tracker | None:
    """The tracker that `choice` names; runs take "none" unless asked for another.

    "auto" is TensorBoard if installed, else trackio if installed, else none. TensorBoard writes to
    `folder`/tensorboard (its file names carry the machine's name); trackio to its own store in the
    home folder, or wherever its environment variables say. `name` is the run's name.

    Raises:
        ValueError: an unknown choice, or one that is not installed.
    """
    if choice not in TRACKERS:
        raise ValueError(f"unknown tracker {choice!r}: choose one of {', '.join(TRACKERS)}")
    if choice == "auto":
        choice = next(filter(_installed, ("tensorboard", "trackio")), "none")
    if choice == "none":
        return None
    if not _installed(choice):
        raise ValueError(f"tracker {choice!r} is not installed: pip install 'steelyard[track]'")
    if choice == "tensorboard":
        return TensorBoard(Path(folder) / "tensorboard", resumed_at)
    return Trackio(name, resumed_at)


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
