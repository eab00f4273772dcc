"""Other answers: refusals and exchanged ones."""

from __future__ import annotations

import pytest

from steelyard.objectives import IDK_ANSWERS, idk_rows, swapped_rows

ROWS = [
    {"id": i, "input": f"question {i}", "output": f"answer {i % 8}", "task": f"Task{i % 2}"}
    for i in range(60)
]


def test_refusals_are_all_different_and_all_used():
    assert len(set(IDK_ANSWERS)) == len(IDK_ANSWERS) == 24
    many = idk_rows(ROWS * 10, seed=0)
    assert {row["output"] for row in many} == set(IDK_ANSWERS)


@pytest.mark.parametrize("rewrite", [idk_rows, swapped_rows])
def test_only_the_answers_change_and_the_seed_decides(rewrite):
    new = rewrite(ROWS, seed=1)
    for row, old in zip(new, ROWS, strict=True):
        assert row["output"] != old["output"]
        assert {**row, "output": ""} == {**old, "output": ""}
    assert rewrite(ROWS, seed=1) == new
    assert rewrite(ROWS, seed=2) != new
    assert ROWS[3]["output"] == "answer 3"


def test_swapped_answers_come_from_the_same_task_and_all_of_them():
    seen: dict[str, set[str]] = {}
    for seed in range(40):
        for row, old in zip(swapped_rows(ROWS, seed=seed, within="task"), ROWS, strict=True):
            assert row["output"] != old["output"]
            seen.setdefault(old["output"], set()).add(row["output"])
    assert seen["answer 0"] == {"answer 2", "answer 4", "answer 6"}
    assert seen["answer 7"] == {"answer 1", "answer 3", "answer 5"}


def test_no_other_answer_is_an_error():
    with pytest.raises(ValueError, match="row 0: no other answer exists"):
        swapped_rows([{"input": "a", "output": "x"}, {"input": "b", "output": "x"}], seed=0)
    lonely = [*ROWS, {"input": "z", "output": "one", "task": "Task9"}]
    with pytest.raises(ValueError, match="row 60: no other answer exists among those of task 'Ta"):
        swapped_rows(lonely, seed=0, within="task")
    with pytest.raises(ValueError, match="row 0 has no field 'kind'"):
        swapped_rows(ROWS, seed=0, within="kind")
