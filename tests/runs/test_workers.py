"""Calls are made once, kept in a file, and made again only where their line was torn."""

from __future__ import annotations

import json

from steelyard.runs.pool import Pool
from steelyard.runs.workers import Call, Workers

MADE: list[int] = []


def double(value: int) -> dict[str, int]:
    MADE.append(value)
    return {"result": 2 * value}


def calls(*values: int) -> dict[str, Call]:
    return {str(v): Call(function=double, arguments=(v,), told=f"double {v}") for v in values}


def test_a_call_is_made_once_also_across_restarts(tmp_path):
    MADE.clear()
    said: list[str] = []
    file = tmp_path / "deep" / "results.jsonl"
    with Workers(file, 0, said.append) as workers:
        assert workers(calls(1, 2)) == {"1": {"result": 2}, "2": {"result": 4}}
        assert workers(calls(2)) == {"2": {"result": 4}}
    with Workers(file, 0) as again:
        assert again(calls(2, 3)) == {"2": {"result": 4}, "3": {"result": 6}}
    assert MADE == [1, 2, 3]
    assert len(said) == 2
    assert said[1].startswith("2/2 double 2: result 4; 0 min left")


def test_a_torn_line_is_computed_again_and_the_next_one_stays_whole(tmp_path):
    file = tmp_path / "results.jsonl"
    file.write_text('{"key": "1", "result": 2}\n{"key": "2", "resu')
    MADE.clear()
    with Workers(file, 0) as workers:
        assert workers(calls(1, 2))["2"] == {"result": 4}
    assert MADE == [2]
    assert json.loads(file.read_text().splitlines()[-1]) == {"key": "2", "result": 4}


def test_equal_settings_are_one_call_whatever_their_order(tmp_path):
    MADE.clear()
    with Pool(cache=tmp_path, workers=0) as pool:
        found = pool.each(double, [{"value": 5}, {"value": 5}, {"value": 6}])
        assert [one["result"] for one in found] == [10, 10, 12]
    with Pool(cache=tmp_path, workers=0) as pool:
        assert pool.each(double, [{"value": 6}])[0]["result"] == 12
    assert MADE == [5, 6]


def test_a_new_version_of_the_function_is_computed_again(tmp_path, monkeypatch):
    MADE.clear()
    with Pool(cache=tmp_path, workers=0) as pool:
        pool.each(double, [{"value": 5}])
        monkeypatch.setitem(globals(), "RESULTS", 2)
        pool.each(double, [{"value": 5}])
    assert MADE == [5, 5]
