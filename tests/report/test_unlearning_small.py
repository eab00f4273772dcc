"""The page of the small benchmark, from synthetic runs."""

from __future__ import annotations

import json
from itertools import pairwise

from steelyard.report.unlearning_small import outcome, rates, trajectories, write_report

TWELVE = {f"Task{t} {s} {k}": 0.5 for t in (1, 2, 3) for s in ("forget", "retain")
          for k in ("knowledge", "regurgitation")}  # fmt: skip
ONE = {"aggregate": 0.1, "mia": {"auc": 0.9, "score": 0.2}, "utility": {"accuracy": 0.8},
       "final": 0.4, "twelve": TWELVE}  # fmt: skip
METHODS = ("npo", "graddiff", "ngdiff")
COLOURS = dict.fromkeys(("ink", "muted", "line", "private", "plain", "brass"), "#000000")


def compared(make_unlearned, tmp_path):
    for name in METHODS:
        make_unlearned(f"all/{name}", result={"method": name})
    content = {
        "scores": dict.fromkeys(("target", "reference", *METHODS), ONE), "reference_loss": 5.25,
        "seconds": 81.0, "tuned": ["npo"], "tuned_on": 1, "processor_seconds": {"npo": 41.6},
        "benchmark": {"seed": 0, "sizes": {"forget": 20, "non_members": 20}},
    }  # fmt: skip
    (tmp_path / "all" / "scores.json").write_text(json.dumps(content))
    return tmp_path / "all"


def test_the_page(make_unlearned, tmp_path):
    text = write_report(compared(make_unlearned, tmp_path)).read_text(encoding="utf-8")
    for part in ("3 methods beside", "forget 20, non members 20", "0.900", "10 of 10",
                 "reference 5.25", '<a href="npo/report.html">npo</a>,'):  # fmt: skip
        assert part in text
    assert text.index(">npo</th>") < text.index(">graddiff</th>")  # as compared, not by letter
    assert "{&#39;" not in text


def ended(forget, lr=0.01):
    from types import SimpleNamespace

    return SimpleNamespace(end=(forget, 0.2), config={"lr": lr})


def test_it_says_who_reached_the_reference_and_whose_aggregate_is_highest():
    numbers = (("reference", 0.95, 0.9), ("npo", 0.4, 0.6), ("kl", 0.7, 0.5))
    scores = {n: {"aggregate": a, "final": f} for n, a, f in numbers}
    best = (
        "The highest aggregate of LUME's scores is kl's, 0.700 (reference 0.950). The highest "
        "final score is npo's, 0.600 (reference 0.900): it counts what an attack still finds."
    )
    for npo, kl, told in (
        (6.0, 7.0, "npo and kl reached the reference's forget loss"),
        (5.9, 7.0, "kl reached the reference's forget loss; npo did not"),
        (5.9, 5.9, "npo and kl did not reach the reference's forget loss"),
    ):
        stories = {"npo": ended(npo), "kl": ended(kl)}
        assert outcome(stories, scores, 6.0) == f"{told}. {best}"


def test_it_says_where_rates_come_from():
    stories = {"npo": ended(6.0), "kl": ended(6.0), "ngdiff": ended(6.0, lr=None)}
    text = rates(stories, ["npo"], 1)
    assert "for npo, the best of four on seed 1; set for kl; found" in text
    assert text.endswith("for ngdiff, the table has the last.")
    assert rates({"kl": ended(6.0)}, [], None) == "Learning rates: set for kl."


def test_a_run_has_its_rate_its_losses_and_its_cost(make_unlearned, tmp_path):
    text = write_report(compared(make_unlearned, tmp_path)).read_text(encoding="utf-8")
    line = text[text.index('<th scope="row">npo</th><td>0.01') :].split("</tr>")[0]
    assert line.endswith("<td>10 of 10</td><td>3</td><td>no</td><td>0.2</td><td>42</td>")


def test_names_of_paths_that_end_at_one_place_do_not_collide(make_unlearned):
    from matplotlib.figure import Figure

    from steelyard.report.unlearning_read import read

    stories = {name: read(make_unlearned(name)) for name in METHODS}
    axes = Figure().subplots()
    trajectories(axes, stories, 5.25, COLOURS)
    names = [note for note in axes.texts if note.get_text() in METHODS]
    heights = sorted(note.xy[1] for note in names)
    apart = min(b - a for a, b in pairwise(heights))
    assert apart > 0.05 * axes.get_ylim()[1]
