"""The page of the small benchmark, from synthetic runs."""

from __future__ import annotations

import json
from itertools import pairwise

from steelyard.report.unlearning_small import trajectories, write_report

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
        "seconds": 81.0, "benchmark": {"seed": 0, "sizes": {"forget": 20, "non_members": 20}},
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
