"""The page of an unlearning run, from synthetic folders."""

from __future__ import annotations

import re

import pytest

from steelyard.report.unlearning import LONGEST, html, texts, thinned, write_report
from steelyard.report.unlearning_charts import arranged, bars, trajectory
from steelyard.report.unlearning_read import read

TWELVE = {f"Task{t} {s} {k}": 0.25 * t for t in (1, 2, 3) for s in ("forget", "retain")
          for k in ("knowledge", "regurgitation")}  # fmt: skip
BACK = "the retain loss 0.2 is above its limit 0.15: back to the state after step 5"
GIVEN_UP = {
    "stopped": BACK, "retain_limit": 0.15, "after": {"forget_loss": 1.5, "retain_loss": 0.1},
}  # fmt: skip
COLOURS = dict.fromkeys(("ink", "muted", "line", "private", "plain", "brass"), "#000000")


def test_the_files_and_the_page(make_unlearned):
    folder = make_unlearned()
    text = write_report(folder).read_text(encoding="utf-8")
    for part in ("tiny</span> unlearned with", "9 October 2025", "10 steps in", "all 900 param",
                 "who?", "no longer word for word", "Exact answers, forget", "0.01"):  # fmt: skip
        assert part in text
    assert "/models/tiny</span>" not in text
    assert text.count("<svg") == 4  # path, losses, cosine, scores: a rate that is given is flat
    assert "Dotted" not in text
    assert (folder / "trajectory.csv").read_text().splitlines()[2] == "5,1.5,0.1"
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(set(ids)) == len(ids)


def test_hostile_texts_are_text(make_unlearned):
    evil = "<script>alert(1)</script>\udc80"
    one = [{"id": "1", "input": evil, "output": evil, "written": evil}]
    part = {"samples": {"forget": one, "retain": one}, "twelve": TWELVE, "aggregate": 0.5}
    folder = make_unlearned(
        samples={"before": part, "after": part}, result={"model": evil, "method": evil},
        environment={evil: evil}, config={evil: evil},
    )  # fmt: skip
    text = write_report(folder).read_text(encoding="utf-8")
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_the_stop_and_what_was_given_up_are_said(make_unlearned):
    story = read(make_unlearned(result=GIVEN_UP))
    assert [step for step, *_ in story.kept] == [0, 5]
    assert [step for step, *_ in story.given_up] == [5, 10]
    text = html(story)
    assert f"Stopped: {BACK}." in text
    assert "Crosses: what was given up" in text
    assert "Dotted: where it stops" in text
    assert "Nothing was unlearned" not in text


def test_a_run_that_came_back_to_its_start_says_that_nothing_was_unlearned(make_unlearned):
    start = {"forget_loss": 0.004, "retain_loss": 0.003}
    story = read(make_unlearned(result=GIVEN_UP | {"after": start}))
    assert not story.moved
    assert "Nothing was unlearned." in html(story)


@pytest.mark.parametrize(("loss", "told"), [(2.9, "reached its aim"), (3.1, "did not reach its")])
def test_whether_the_aim_was_reached(make_unlearned, loss, told):
    assert told in html(read(make_unlearned(config={"reference_loss": loss})))


def test_lume_rows_have_their_twelve_scores_and_the_aggregate(make_unlearned):
    samples = {"forget": [], "retain": []}
    part = {"samples": samples, "scores": {}, "twelve": TWELVE, "aggregate": 0.375}
    text = html(read(make_unlearned(samples={"before": part, "after": part})))
    assert "LUME aggregate" in text
    assert text.count("→") == 12
    assert "Task2: invented people" in text


def test_scores_are_drawn_from_0_to_1_forgotten_above_retained():
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    bars(axes, TWELVE, dict.fromkeys(TWELVE, 1.0), COLOURS)
    assert axes.get_xlim() == (0, 1)
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names[0] == "forgotten"
    assert names[7] == "retained"
    assert names[1] == names[8] == "Task1 knowledge"
    places = [label.get_position()[1] for label in axes.get_yticklabels()]
    drawn = {round(bar.get_y() + bar.get_height() / 2, 6) for bar in axes.patches}
    assert drawn == {place for place, name in zip(places, names, strict=True) if "Task" in name}
    assert len(arranged(list(TWELVE))) == 14


def test_the_path_shows_what_was_kept_and_the_ring_is_what_was_saved(make_unlearned):
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    trajectory(axes, read(make_unlearned(result=GIVEN_UP)), COLOURS)
    kept, lost, ring, *_ = axes.get_lines()
    assert kept.get_xydata().tolist() == [[0.003, 0.004], [0.1, 1.5]]
    assert lost.get_xydata().tolist() == [[0.1, 1.5], [0.2, 3.0]]
    assert ring.get_xydata().tolist() == [[0.1, 1.5]]
    assert axes.get_xlim()[0] == axes.get_ylim()[0] == 0
    assert [note.get_text() for note in axes.texts] == ["before", "after", "limit 0.15", "↖ better"]


def test_a_far_state_that_was_given_up_does_not_squash_the_picture(make_unlearned):
    from matplotlib.figure import Figure

    looks = [(0, 0.004, 0.003), (5, 1.5, 0.1), (10, 300.0, 500.0)]
    events = [{"kind": "eval", "step": s, "forget_loss": f, "retain_loss": r} for s, f, r in looks]
    axes = Figure().subplots()
    trajectory(axes, read(make_unlearned(result=GIVEN_UP, events=events)), COLOURS)
    assert axes.get_xlim()[1] < 0.3
    assert axes.get_ylim()[1] < 3


def test_long_texts_are_cut_prompts_at_their_start(make_unlearned):
    long = {"id": "1", "input": "a" * 600 + "z", "output": "b" + "a" * 600, "written": ""}
    part = {"samples": {"forget": [long], "retain": []}}
    (one,) = texts({"before": part, "after": part}, "forget")
    assert one["prompt"] == "… " + ("a" * 600 + "z")[-LONGEST:]
    assert one["answer"] == ("b" + "a" * 600)[:LONGEST] + " …"
    assert one["after"] == "(nothing)"
    assert one["mark"] == ""


@pytest.mark.parametrize(
    ("key", "written", "mark", "role"),
    [
        ("forget", "Ada", "still word for word", "plain"),
        ("forget", "Bob", "no longer word for word", "private"),
        ("retain", "Ada ", "word for word", "private"),
        ("retain", "Bob", "no longer word for word", "plain"),
    ],
)
def test_what_became_of_an_answer(key, written, mark, role):
    row = {"id": "1", "input": "who?", "output": " Ada", "written": "Ada"}
    before = {"samples": {key: [row]}}
    (one,) = texts(
        {"before": before, "after": {"samples": {key: [{**row, "written": written}]}}}, key
    )
    assert (one["mark"], one["role"], one["before"]) == (mark, role, "")


def test_thinned_rows_end_with_the_last():
    assert thinned(list(range(101)))[-1] == 100
    assert len(thinned(list(range(101)))) <= 20
    assert thinned([1, 2]) == [1, 2]


def test_a_folder_without_the_files_is_one_line(make_unlearned):
    folder = make_unlearned()
    (folder / "samples.json").unlink()
    with pytest.raises(ValueError, match=r"'samples.json' is missing in .*"):
        write_report(folder)
    assert not (folder / "report.html").exists()
