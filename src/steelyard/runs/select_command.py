"""`steelyard select`: the verb and what it shows. As `cli`, it loads no torch."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from steelyard import terminal

if TYPE_CHECKING:
    from steelyard.runs.selection import Chosen


def register(app: typer.Typer) -> None:
    """Make `select` a command of `app`."""
    app.command("select")(select_command)


def select_command(
    model: Annotated[str, typer.Argument(help="as for train: minilm, gpt, a Hugging Face name")],
    data: Annotated[str | None, typer.Option(help="as for train")] = None,
    budget: Annotated[str, typer.Option(help="parameters to train: 5000, or 1% of them")] = "1%",
    groups: Annotated[
        str | None, typer.Option(help="roles, coarse, or name patterns with commas")
    ] = None,
    fits: Annotated[int, typer.Option(min=3, help="measurements of every group")] = 10,
    every: Annotated[
        int, typer.Option(min=0, help="train so many steps between fits; 0: not at all")
    ] = 4,
    full: Annotated[bool, typer.Option("--full", help="measure how groups overlap, too")] = False,
    adapter: Annotated[
        str | None, typer.Option(help="what may be trained: full (default), lora, bias, head")
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option(help="the one that will train: sgd, adam, adamw")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="its learning rate")] = None,
    batch: Annotated[int | None, typer.Option(help="samples in a batch; default: 64")] = None,
    text: Annotated[str | None, typer.Option(help="text column of a table")] = None,
    label: Annotated[str | None, typer.Option(help="label column of a table")] = None,
    length: Annotated[int | None, typer.Option(help="tokens per text")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1")] = None,
    seed: Annotated[int | None, typer.Option(help="of weights and batches")] = None,
    transfer_to: Annotated[
        str | None, typer.Option(help="a larger model: choose among its groups by these gains")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="new folder: picture, numbers, choice")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="all numbers as JSON")] = False,
) -> None:
    """Which groups of parameters to train under a budget, by their gain in one step (AdaPEFT)."""
    ours = {"budget", "groups", "fits", "every", "full", "transfer_to", "out", "as_json"}
    settings = {k: v for k, v in locals().items() if k not in (*ours, "ours") and v is not None}
    from steelyard.runs import selection
    from steelyard.runs.folder import refuse_existing

    if out is not None:
        refuse_existing(out)
    config, results = selection.select(
        settings,
        budget=budget,
        groups=groups,
        fits=fits,
        every=every or None,
        full=full,
        transfer_to=transfer_to,
        note=terminal.note,
    )
    if out is not None:
        selection.write(out, config, results)
    if as_json:
        typer.echo(json.dumps(selection.as_record(config, results), indent=1))
    else:
        for one in results:
            _show(one, moved=one is not results[0])
    terminal.note(f"note: {selection.PRIVACY}")
    if out is not None:
        terminal.note(f"written: {out}")


def _show(one: Chosen, *, moved: bool) -> None:
    from rich.markup import escape
    from rich.table import Table

    from steelyard.runs.selection import densest_first

    found = one.found
    gains, density, sizes = found.gains, found.density, found.sizes
    how = ", gains as measured on the smaller model" if moved else ""
    table = Table(title=escape(f"groups of {one.model}{how}"), title_justify="left")
    table.add_column("group", overflow="fold", min_width=11)
    for name in ("parameters", "share", "gain", "density", "fits", "chosen"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in densest_first(found):
        believed = len(found.values[name])
        numbers = ("-", "-") if gains[name] != gains[name] else (
            f"{gains[name]:.3g}", f"{density[name]:.2e}"
        )  # fmt: skip
        table.add_row(
            escape(name), f"{sizes[name]:,}", f"{sizes[name] / found.total:.2%}", *numbers,
            f"{believed}/{found.fits}", "yes" if name in one.selection.names else "",
        )  # fmt: skip
    console = terminal.console(stderr=False)
    console.print(table)
    for line in sentences(one):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def sentences(one: Chosen) -> list[str]:
    """The choice in words, the front, and what was not believed."""
    chosen, found = one.selection, one.found
    under = f"Under {chosen.budget:,} parameters ({chosen.budget / found.total:.2%})"
    if chosen.names:
        said = [
            f"{under}: {', '.join(chosen.names)}; {chosen.parameters:,} parameters, "
            f"{chosen.share:.2%} of the model; predicted gain {chosen.gain:.3g} per step."
        ]
    else:
        smallest = min(one.front, key=lambda prefix: prefix.parameters)
        said = [f"{under}: nothing fits; the densest group takes {smallest.parameters:,}."]
    steps = (f"{prefix.share:.2%} + {prefix.names[-1]} ({prefix.gain:.3g})" for prefix in one.front)
    said.append(f"The front, share + group (gain): {'; '.join(steps)}.")
    gains = found.gains
    for name in (name for name in found.names if gains[name] != gains[name]):
        reason = Counter(found.reasons[name]).most_common(1)[0][0]
        said.append(f"Not measured: {name}, most often because {reason}.")
    if one.peft is not None:
        said.append(f"peft can express the choice: {type(one.peft).__name__}.")
    elif chosen.names:
        said.append(f"No configuration of peft: {one.peft_reason}.")
    return said
