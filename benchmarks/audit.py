"""The audit on five seeds, with the noise as claimed and with part of it: a table and a figure.

    python benchmarks/audit.py [--seeds 5] [--json FILE] [--markdown FILE] [--figure FILE]

Each row is what `steelyard bench audit` says with the options in the row's first column.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from steelyard.bench.audit import AuditConfig, audit, together
from steelyard.runs.environment import environment

INPUT: dict[str, Any] = {"mode": "input", "model": "mlp", "lr": 0.5, "steps": 200}
CASES: dict[str, dict[str, Any]] = {
    "(defaults)": {},
    "--break-noise 0.5": {"break_noise": 0.5},
    "--break-noise 0.25": {"break_noise": 0.25},
    "--groups layer": {"groups": "layer"},
    "--groups layer --break-noise 0.5": {"groups": "layer", "break_noise": 0.5},
    "--epsilon 8": {"epsilon": 8.0},
    "--mode input --model mlp --lr 0.5 --steps 200": INPUT,
    "--mode input --model mlp --lr 0.5 --steps 200 --break-noise 0.02": INPUT
    | {"break_noise": 0.02},
}
DRAWN = {"(defaults)": "as claimed", "--break-noise 0.5": "half", "--break-noise 0.25": "a quarter"}
Row = dict[str, Any]


def measure(options: dict[str, Any], seeds: int) -> Row:
    results = [audit(AuditConfig(seed=seed, **options)) for seed in range(seeds)]
    bound, first = together(results), results[0]
    return {
        "claimed": first.claimed_epsilon,
        "bounds": [round(result.bound.epsilon, 4) for result in results],
        "together": asdict(bound),
        "refuted": bound.epsilon > first.claimed_epsilon,
        "ceiling": round(first.ceiling, 4),
        "expected": first.expected,
        "sigma": first.noise_multiplier,
        "accuracy": [result.test["accuracy"] for result in results],
        "seconds": [round(result.seconds, 1) for result in results],
        "config": asdict(first.config),
    }


def markdown(rows: dict[str, Row], machine: dict[str, Any]) -> str:
    first = rows["(defaults)"]
    config = first["config"]
    lines = [
        "# Audit: epsilon bounded from below",
        "",
        f"`steelyard bench audit OPTIONS`: {len(first['bounds'])} trainings of the "
        f"{config['model']} on {config['data']}, {config['steps']} steps of expected batch "
        f"{config['batch']}, delta {config['delta']:g}, bounds at confidence "
        f"{config['confidence']:g}. The fastest took {min(first['seconds']):.0f} s on "
        f"{machine['cores']} cores with torch {machine['torch']}.",
        "",
        "| options | claimed | at least, by seed | all seeds pooled | right / guesses "
        "| simulated | ceiling | accuracy | refuted |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for options, row in rows.items():
        count = row["together"]["count"]
        simulated = "-" if row["expected"] is None else f"{row['expected']:.2f}"
        cells = [
            f"`{options}`" if options.startswith("-") else options,
            f"{row['claimed']:.2f}",
            ", ".join(f"{bound:.2f}" for bound in row["bounds"]),
            f"**{row['together']['epsilon']:.2f}**",
            f"{count['right']} / {count['guesses']}",
            simulated,
            f"{row['ceiling']:.2f}",
            f"{100 * min(row['accuracy']):.0f}-{100 * max(row['accuracy']):.0f} %",
            "yes" if row["refuted"] else "no",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "Simulated: the median bound when the claimed mechanism itself is attacked, without any "
        "code of the engine. Ceiling: the bound of perfect guesses in one training.",
    ]
    return "\n".join(lines) + "\n"


def draw(rows: dict[str, Row], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.4), dpi=160, layout="constrained")
    axes = figure.subplots()
    colors = ["#0b6868", "#9c440d", "#9c440d"]
    shown = {options: rows[options] for options in DRAWN}
    for at, (row, color) in enumerate(zip(shown.values(), colors, strict=True)):
        count = len(row["bounds"])
        places = [at + 0.8 * ((i + 0.5) / count - 0.5) for i in range(count)]
        axes.bar(places, row["bounds"], 0.62 / count, color=color)
        middle = f"pooled: {row['together']['epsilon']:.2f}"
        top = max(row["bounds"])
        axes.annotate(middle, (at, top), (0, 4), textcoords="offset points", ha="center")
    first = shown["(defaults)"]
    for value, name, style in (
        (first["claimed"], "claimed", "-"),
        (first["ceiling"], "ceiling of one training", ":"),
    ):
        axes.axhline(value, color="#5b636c", linewidth=1.1, linestyle=style)
        axes.annotate(f"{name} {value:.2f}", (-0.5, value), (2, 3), textcoords="offset points")
    axes.set_xticks(range(len(DRAWN)), DRAWN.values())
    axes.set_xlabel("noise that was really added")
    axes.set_ylabel("ε at least (95 %), by seed")
    axes.set_xlim(-0.5, len(DRAWN) - 0.5)
    axes.set_ylim(0, 1.2 * first["ceiling"])
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, facecolor="white", metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description="bounds on epsilon from below, by audit")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write everything here")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    parser.add_argument("--figure", type=Path, help="draw here (PNG or SVG)")
    parser.add_argument("--from-json", type=Path, help="measure nothing: take the rows from here")
    args = parser.parse_args()
    if args.from_json:
        found = json.loads(args.from_json.read_text(encoding="utf-8"))
    else:
        found = {"machine": environment(), "rows": {}}
        for options, changes in CASES.items():
            found["rows"][options] = measure(changes, args.seeds)
            print(options, found["rows"][options]["bounds"], flush=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    page = markdown(found["rows"], found["machine"])
    if args.markdown:
        args.markdown.write_text(page, encoding="utf-8")
    if args.figure:
        draw(found["rows"], args.figure)
    print(page)


if __name__ == "__main__":
    main()
