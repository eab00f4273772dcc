"""Write the report of a run into its folder: report.html, curves.png and curves.csv; where rates
were found, rates.png, rates.csv and parabolas.csv; where gradients were noised, spectrum.png."""

from __future__ import annotations

import math
import shlex
from pathlib import Path

from steelyard.report import rates, spectrum, tables, words
from steelyard.report.curves import both, label, panels
from steelyard.report.numerals import day
from steelyard.report.read import Run, number, read_run
from steelyard.report.summary import summarize
from steelyard.report.templates import markup, rendered
from steelyard.runs.files import write_atomically

SPECTRUM = "spectrum.csv"  # in the folder of a private run


def write_report(run_folder: Path) -> Path:
    """Write the page and its pictures beside the run's files; the page's path.

    Guarantees: the page is one file without script that fetches nothing; a file is replaced whole
    or not at all; nothing is shown that the run computed from private data without noise, but for
    what its ledger calls unprotected and for the comparison in baseline/.
    Raises: ValueError, one line, where a file of the run is missing or cannot be read.
    """
    from steelyard.report.plots import png

    folder = Path(run_folder)
    run, found = read_run(folder), _spectrum(folder)
    learned = rates.rates_of(run)
    contents = {
        "curves.csv": tables.csv_text(run).encode(),
        "curves.png": png(panels(run, summarize(run).target)),
        **({} if found is None else {"spectrum.png": spectrum.png(found)}),
        **({} if learned is None else _rates(learned)),
        "report.html": html(run).encode(errors="replace"),
    }
    for name, content in contents.items():
        write_atomically(folder / name, content)
    return folder / "report.html"


def _rates(learned: rates.Rates) -> dict[str, bytes]:
    return {
        "rates.csv": rates.csv_text(learned).encode(),
        "parabolas.csv": rates.points_csv(learned).encode(),
        "rates.png": rates.png(learned),
    }


def _spectrum(folder: Path) -> spectrum.Spectrum | None:
    path = folder / SPECTRUM
    return spectrum.read_csv(path) if path.is_file() else None


def html(run: Run) -> str:
    """The page as text: a function of the run's files alone."""
    from steelyard.report.plots import svg

    summary, found = summarize(run), _spectrum(run.folder)
    charts = panels(run, summary.target)
    learned = rates.rates_of(run)
    return rendered(
        "template.html",
        run=run,
        s=summary,
        w=words,
        t=tables,
        charts={panel.key: panel for panel in charts},
        drawn={panel.key: markup(svg(panel)) for panel in charts},
        cards=tables.cards(summary),
        tables=[(label(one), *tables.evaluations(one)) for one in both(run) if one.of_kind("eval")],
        spectrum=markup("" if found is None else spectrum.svg(found)),
        rates=learned,
        rate_curves=markup("" if learned is None else rates.svg(learned)),
        parabolas=[(one, markup(drawing)) for one, drawing in rates.parabola_svgs(learned)]
        if learned
        else [],
        clip=tables.clip_statistics(run),
        command=_command(run.config.get("command")),
        date=day(number(run.start.get("time"))),
        poise=_poise(summary.epsilon),
    )


def _command(recorded: object) -> str | None:
    if isinstance(recorded, list):
        return shlex.join(str(word) for word in recorded)
    return None if recorded is None else str(recorded)


def _poise(epsilon: float | None) -> float | None:
    """Where the weight hangs on the beam: log10(epsilon) from 0.1 (0) to 100 (1), clamped."""
    if epsilon is None:
        return None
    return min(1.0, max(0.0, (math.log10(max(epsilon, 1e-9)) + 1.0) / 3.0))
