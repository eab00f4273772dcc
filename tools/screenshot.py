"""Take a picture of a report page: `python tools/screenshot.py report.html out.png --width 1100`.

Calls a headless Chromium or Chrome, and cuts the empty rows below the end of the page.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.image
import numpy as np

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
TALLEST = 9000  # CSS pixels; a page is cut there
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-sync", "--disable-component-update",
)  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--width", type=int, default=1100, help="of the window, CSS pixels")
    parser.add_argument("--height", type=int, default=0, help="CSS pixels; 0: the whole page")
    parser.add_argument("--scale", type=float, default=1.0, help="picture pixels per CSS pixel")
    parser.add_argument("--dark", action="store_true", help="as a browser set to dark")
    chosen = parser.parse_args(arguments)
    try:
        screenshot(**vars(chosen))
    except (OSError, ValueError) as error:
        sys.stderr.write(f"screenshot: {error}\n")
        return 2
    return 0


def screenshot(
    page: Path, picture: Path, *, width: int, height: int = 0, scale: float = 1.0, dark: bool
) -> None:
    """Write the PNG `picture` of the file `page`.

    Raises: ValueError if there is no browser, no page, or no picture came of it.
    """
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        raise ValueError("no Chromium or Chrome found on PATH: install one, e.g. Debian's chromium")
    if not page.is_file():
        raise ValueError(f"no page at '{page}': write one with `steelyard report RUN_FOLDER`")
    with tempfile.TemporaryDirectory() as scratch:
        raw = Path(scratch) / "raw.png"
        command = [
            browser,
            *QUIET,
            f"--user-data-dir={scratch}/profile",
            f"--window-size={width},{height or TALLEST}",
            f"--force-device-scale-factor={scale:g}",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            f"--screenshot={raw}",
            page.resolve().as_uri(),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if not raw.is_file():
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ValueError(f"{browser} wrote no picture (exit code {done.returncode}): {last}")
        pixels = matplotlib.image.imread(raw)  # [rows, columns, RGB or RGBA]
    matplotlib.image.imsave(picture, pixels if height else without_tail(pixels))


def without_tail(pixels: np.ndarray) -> np.ndarray:
    """The rows down to the last that differs from the bottom row, and a margin."""
    differs = np.flatnonzero((pixels != pixels[-1]).any(axis=(1, 2)))
    last = int(differs[-1]) + 1 if differs.size else len(pixels)
    return np.ascontiguousarray(pixels[: last + pixels.shape[1] // 40])


if __name__ == "__main__":
    raise SystemExit(main())
