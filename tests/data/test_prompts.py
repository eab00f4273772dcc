"""Files of prompts and answers: what is read, and what each mistake is told as."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from steelyard.data.prompts import read_prompts, refuse_overlap


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in rows))
    return path


def test_rows_are_read_under_any_of_the_usual_names(tmp_path):
    file = write(
        tmp_path / "f.jsonl",
        {"input": "a", "output": "b", "id": "x7", "task": "Task1"},
        "\n",
        {"question": "c", "answer": "d"},
        {"prompt": "e", "response": "f", "alternatives": ["g"]},
    )
    first, second, third = read_prompts(file)
    assert first == {"input": "a", "output": "b", "id": "x7", "task": "Task1"}
    assert second == {"input": "c", "output": "d", "id": "3"}  # the line, the empty one counted
    assert third["alternatives"] == ["g"]


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([], "has no rows"),
        (["\n\n"], "has no rows"),
        (["{oops\n"], "f.jsonl, line 1: not valid JSON"),
        ([[1]], 'line 1: [1] is not an object like {"input": "...", "output": "..."}'),
        ([{"input": "a", "output": "b"}, {"input": "a"}], "line 2 has the fields input: it needs"),
        ([{"input": "a", "output": " "}], "line 1: \"output\" is ' '"),
        ([{"input": "a", "output": 5}], 'line 1: "output" is 5'),
    ],
)
def test_mistakes_are_one_line_with_the_place(tmp_path, rows, told):
    with pytest.raises(ValueError, match=re.escape(told)) as caught:
        read_prompts(write(tmp_path / "f.jsonl", *rows))
    assert "\n" not in str(caught.value)


def test_rows_in_both_sets_are_named():
    rows = [{"id": str(i), "input": f"q{i}", "output": "a"} for i in range(6)]
    refuse_overlap(rows[:3], rows[3:])
    refuse_overlap(rows[:1], [{**rows[0], "output": "b"}])
    with pytest.raises(ValueError, match=r"4 rows are in .* 0 \(retain: 0\), .* and 1 more; take"):
        refuse_overlap(rows[:4], [{**row, "input": row["input"] + " "} for row in rows])
