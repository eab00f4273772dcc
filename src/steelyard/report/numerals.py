"""Numbers as a reader wants them: units, significant digits, powers of ten."""

from __future__ import annotations

import json
import math
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from steelyard.report.summary import Score

if TYPE_CHECKING:
    from markupsafe import Markup

THIN = "\u202f"  # narrow no-break space, between a number and its unit
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
LEVEL = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹ᵋ", "−0123456789ε")


def shown(score: Score) -> str:
    """A score with its unit and, for accuracy, the range that the size of the test set leaves."""
    if score.name != "accuracy":
        return f"{score.value:.2f}"
    spread = f" ± {100 * score.half_width:.1f}" if score.half_width is not None else ""
    return f"{100 * score.value:.1f}{spread}{THIN}%"


def percent(share: float) -> str:
    """A share as a percentage, rounded up, but 100 only for 1."""
    digits = 1 if share < 0.998 else 3
    up = math.ceil(share * 100 * 10**digits - 1e-6) / 10**digits
    return f"{up if share == 1 else min(up, 99.999):.{digits}f}{THIN}%"


def count(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def plain(value: float) -> str:
    """Three significant digits without an exponent where that stays short."""
    return f"{value:,.3g}" if 1e-4 <= abs(value) < 1e3 or value == 0 else f"{value:,.4g}"


def above(epsilon: float) -> str:
    """An epsilon, rounded up: what is printed is a bound, too."""
    if epsilon > 1e6:
        return f"{epsilon:.3g}"
    return f"{math.ceil(epsilon * 1000 - 1e-6) / 1000:,.3f}".rstrip("0").rstrip(".")


def power(value: float) -> str:
    """A small number as a power of ten: 1e-5 is 10⁻⁵, 2.5e-6 is 2.5 × 10⁻⁶."""
    if not 0 < value < 1e-2:
        return plain(value)
    exponent = math.floor(math.log10(value) + 1e-9)
    lead = f"{value / 10.0**exponent:.3g}"
    ten = "10" + str(exponent).translate(SUPERSCRIPT)
    return ten if lead == "1" else f"{lead} × {ten}"


def factor(epsilon: float) -> str:
    """e^epsilon rounded up: to three digits, to a power of ten from 10,000 on."""
    if epsilon >= math.log(1e4):
        exponent = math.floor(epsilon / math.log(10)) + 1
        return "10" + str(exponent).translate(SUPERSCRIPT)
    digits = 2 - math.floor(epsilon / math.log(10))
    up = math.ceil(math.exp(epsilon) * 10.0**digits - 1e-9) / 10.0**digits
    return f"{up:,.{max(digits, 0)}f}"


def prose(text: str) -> Markup:
    """`text` escaped, its superscripts as <sup>, which every font can draw, no break beside =."""
    from markupsafe import Markup, escape

    def raise_(run: re.Match[str]) -> str:
        return f"<sup>{run.group().translate(LEVEL)}</sup>"

    return Markup(
        re.sub(
            f"[{''.join(map(chr, LEVEL))}]+",
            raise_,
            str(escape(text)).replace(" = ", "\u00a0=\u00a0"),
        )
    )


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    if seconds < 60:
        return f"{seconds:.1f}{THIN}s"
    hours, rest = divmod(round(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}{THIN}h {minutes}{THIN}min" if hours else f"{minutes}{THIN}min {seconds}{THIN}s"


def day(time: float | None) -> str:
    """The day of a time in seconds since 1970, in UTC: "9 October 2025"; "" if it is not known."""
    if time is None or not 0 < time < 4e9:
        return ""
    return datetime.fromtimestamp(time, tz=UTC).strftime("%d %B %Y").lstrip("0")


def cell(value: object) -> str:
    """A setting or a number of a table as text, whatever JSON it is."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        small = power(value) if 0 < value < 1e-4 else f"{value:.5g}"
        return f"{value:,.0f}" if abs(value) >= 1e4 else small
    if isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
        return ", ".join(map(str, value)) or "–"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else str(value)


def listed(value: object) -> str:
    """A record of numbers and texts in one line: "rows 600, steps 665"; anything else as `cell`."""
    if not isinstance(value, dict):
        return cell(value)
    return ", ".join(f"{name} {cell(one)}".replace("_", " ") for name, one in value.items()) or "–"
