"""The table and the plot of compared arms: every number of the rows is in them."""

from __future__ import annotations

import matplotlib.image
import pytest

from steelyard.report import claims


def entry(arm: str, epsilon: float | None, mean: float, **more) -> dict:
    known = {"data": "images", "arm": arm, "role": "method", "note": "", "epsilon": epsilon}
    known |= {"mean": mean, "sd": 0.5, "seeds": [0, 1, 2], "lr": 0.25}
    return known | {"values": [mean - 0.5, mean, mean + 0.5]} | more


def row(*entries: dict) -> dict:
    return {
        "paper": "arXiv 1",
        "claim": "it is better",
        "published": "99 | 98",
        "setting": "small",
        "numbers": {"a minus b": "+1.00"},
        "verdict": "holds",
        "cost_s": 7200.0,
        "table": list(entries),
    }


@pytest.fixture
def rows() -> dict:
    shared = [entry("b", eps, 80 + eps, role="baseline") for eps in (1.0, 8.0)]
    return {
        "first": row(entry("a", 1.0, 82), entry("a", 8.0, 90), *shared, entry("free", None, 95.0)),
        "second": row(*shared, entry("a", 1.0, 70, data="texts", note="not DP-equivalent")),
        "other": {"verdict": "holds"},  # a row without a table
    }


def test_what_claims_share_is_listed_once_by_data_set(rows):
    found = claims.lines(rows)
    assert [(data, arm) for data, arm, _ in found] == [
        ("images", "a"),
        ("images", "b"),
        ("images", "free"),
        ("texts", "a"),
    ]
    assert {at: one["mean"] for at, one in found[1][2].items()} == {1.0: 81.0, 8.0: 88.0}
    assert {at: one["mean"] for at, one in found[2][2].items()} == {None: 95.0}
    assert [claims.note(cells) for _, _, cells in found] == ["", "", "", "not DP-equivalent"]
    assert claims.budgets(rows) == [1.0, 8.0, None]


def test_arms_of_one_name_and_other_results_are_kept_apart(rows):
    rows["second"]["table"].append(entry("b", 1.0, 50.0))
    rows["second"]["table"].remove(rows["first"]["table"][2])
    found = {arm: cells for data, arm, cells in claims.lines(rows) if data == "images"}
    assert found["b"][1.0]["mean"] == 81.0
    assert found["b (second)"][1.0]["mean"] == 50.0


def test_the_page_has_every_number_verdict_and_setting(rows):
    page = claims.markdown(rows, "privacy")
    for part in (
        "| data | arm | ε = 1 | ε = 8 | no privacy |",
        "| images | a | 82.00 ± 0.50 (0.25) | 90.00 ± 0.50 (0.25) |  |",
        "| texts | a (not DP-equivalent) | 70.00 ± 0.50 (0.25) |  |  |",
        "| images | free |  |  | 95.00 ± 0.50 (0.25) |",
        "(privacy.png)",
        "## first: holds",
        "- a minus b: +1.00",
        "2.0 core hours",
        "over 3 seeds",
    ):
        assert part in page
    assert "## other" not in page


def size(picture: bytes, path) -> tuple[int, int]:
    path.write_bytes(picture)
    height, width, _ = matplotlib.image.imread(path).shape
    return height, width


def test_one_row_of_panels_for_a_claim_and_one_column_for_a_data_set(rows, tmp_path):
    both = claims.png(rows)
    one = claims.png({"first": rows["first"]})
    tall, wide = size(both, tmp_path / "both.png")
    low, narrow = size(one, tmp_path / "one.png")
    assert tall == pytest.approx(2 * low, rel=0.02)
    assert wide > narrow
    assert both == claims.png(rows)


def test_every_arm_has_a_look_of_its_own_and_baselines_are_grey(rows):
    entries = [entry(f"m{at}", 1.0, 80.0) for at in range(8)]
    entries += [entry(f"b{at}", 1.0, 80.0, role="baseline") for at in range(3)]
    looks = claims._looks(entries)
    assert len({(look.color, look.marker) for look in looks.values()}) == 11
    assert {looks[f"b{at}"].color for at in range(3)} == set(claims.GREYS)
    assert not {looks[f"m{at}"].color for at in range(8)} & set(claims.GREYS)


def test_results_and_their_spread_are_where_they_should_be(rows):
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    entries = rows["first"]["table"]
    claims._draw(axes, entries, claims._looks(entries))
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["ε = 1", "ε = 8"]
    first, second = axes.containers
    for container, means in ((first, [82, 90]), (second, [81, 88])):
        line, _, (bars,) = container
        assert list(line.get_ydata()) == means
        assert [round(float(x)) for x in line.get_xdata()] == [0, 1]
        ends = [sorted(y for _, y in segment) for segment in bars.get_segments()]
        assert ends == [[mean - 0.5, mean + 0.5] for mean in means]
    assert first[0].get_xdata()[0] < second[0].get_xdata()[0]  # side by side
    assert 95.0 in [line.get_ydata()[0] for line in axes.lines]


def test_rows_without_a_table_cannot_be_drawn():
    with pytest.raises(ValueError, match="no row has a table"):
        claims.png({"other": {"verdict": "holds"}})
