"""`steelyard bench lume ...`: score a model on LUME's rows. Verbs only, as in `cli`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from steelyard import terminal

if TYPE_CHECKING:
    from steelyard.bench.lume import LumeResult


def register(bench_app: typer.Typer) -> None:
    """Add the verb `lume` to `steelyard bench`."""
    bench_app.command("lume")(lume_command)


def lume_command(
    model: Annotated[
        str, typer.Argument(help="a folder (model or adapter), a hub name, or smollm2")
    ],
    forget: Annotated[Path, typer.Option(help="JSON lines: id, input, output, task")],
    retain: Annotated[Path, typer.Option(help="the same, of what is to stay")],
    members: Annotated[
        Path | None, typer.Option(help="forgotten documents (document, text, or rows)")
    ] = None,
    non_members: Annotated[
        Path | None, typer.Option("--non-members", help="documents never trained on")
    ] = None,
    attack: Annotated[
        str, typer.Option(help="loss, zlib, min_k, min_k_plus_plus, gradient_norm")
    ] = "loss",
    mmlu: Annotated[float | None, typer.Option(help="accuracy measured elsewhere, 0 to 1")] = None,
    questions: Annotated[
        Path | None, typer.Option(help="questions with choices that stand for MMLU")
    ] = None,
    rows: Annotated[
        int | None, typer.Option(help="at most so many per task and kind; default all")
    ] = None,
    seed: Annotated[int, typer.Option(help="of the choice of --rows")] = 0,
    new_tokens: Annotated[int, typer.Option(help="the most a row may write")] = 256,
    batch: Annotated[int, typer.Option(help="rows in memory at once")] = 16,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="all numbers as JSON")] = False,
) -> None:
    """Twelve scores, their aggregate, membership inference, utility, SemEval's final score."""
    from steelyard.bench.choices import read_questions
    from steelyard.bench.lume import evaluate, read_documents, read_rows
    from steelyard.bench.lume_data import check_sets
    from steelyard.objectives.tokens import between_of
    from steelyard.runs.language_model import load

    if mmlu is not None and questions is not None:
        raise ValueError("--mmlu and --questions are two measures of utility: give one")
    if (members is None) != (non_members is None):
        raise ValueError("--members and --non-members go together: the attack compares the two")
    sets = {"forget": read_rows(forget), "retain": read_rows(retain)}
    check_sets(sets["forget"], sets["retain"])  # before the model is loaded
    inside = read_documents(members) if members else None
    outside = read_documents(non_members) if non_members else None
    utility = read_questions(questions) if questions else mmlu
    loaded, tokenizer = load(model, device)
    found = evaluate(
        loaded,
        tokenizer,
        sets["forget"],
        sets["retain"],
        members=inside,
        non_members=outside,
        attack=attack,
        mmlu=utility,
        rows=rows,
        seed=seed,
        new_tokens=new_tokens,
        batch=batch,
        between=between_of(tokenizer),
    )
    if as_json:
        typer.echo(json.dumps({"name": model, **found.to_dict()}, indent=1, allow_nan=False))
        return
    _show(model, found)


def _show(name: str, found: LumeResult) -> None:
    from rich.table import Table

    table = Table(title=f"LUME: {name}", title_justify="left")
    table.add_column("task", no_wrap=True)
    for which, arrow in (("forget", "low"), ("retain", "high")):
        for measure in ("regurgitation", "knowledge"):
            table.add_column(f"{which}\n{measure}\n({arrow} is good)", justify="right")
    for task, sets in found.scores.items():
        values = [sets[s][m] for s in ("forget", "retain") for m in ("regurgitation", "knowledge")]
        table.add_row(task, *(f"{value:.3f}" for value in values))
    console = terminal.console(stderr=False)
    console.print(table)
    for text in _sentences(found):
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def _sentences(found: LumeResult) -> list[str]:
    said = [f"aggregate {found.aggregate:.3f}: 1 is ideal, one score at its worst makes it 0."]
    if found.mia is not None:
        mia = found.mia
        said.append(
            f"membership inference ({mia['attack']}, {mia['members']} members, "
            f"{mia['non_members']} non-members): AUC {mia['auc']:.3f}, score {mia['score']:.3f}; "
            "AUC 1 remembers, .5 cannot tell, 0 has forgotten too hard."
        )
    if found.utility is not None:
        said.append(f"utility, {found.utility['what']}: {found.utility['accuracy']:.3f}.")
    if found.final is not None:
        said.append(f"final score {found.final:.3f}: the mean of the three.")
    else:
        said.append("no final score: it also needs --members, --non-members, and a utility.")
    return said
