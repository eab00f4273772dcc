"""JSON lines: what is read, with its line, and what each mistake is told as."""

from __future__ import annotations

import json
import re

import pytest

from steelyard.data.json_lines import read_json_lines


def test_objects_come_with_their_lines(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\n  \n{"b": [2]}')  # a mark, two ends of lines, none
    assert read_json_lines(file) == [(1, {"a": 1}), (4, {"b": [2]})]


def test_separators_inside_a_text_end_no_line(tmp_path):
    """What `str.splitlines` takes for ends of lines may be part of a JSON text."""
    text = "one\u2028two\x85three\u2029four"
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"input": text}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_json_lines(file) == [(1, {"input": text})]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", 'a.jsonl has no rows: write one object like {"input": "...", "output": "..."} a'),
        (b"\n \n", "a.jsonl has no rows"),
        (b'{"a": 1}\n\n{oops', "a.jsonl, line 3: not valid JSON: Expecting property name"),
        (b"[1, 2]", 'a.jsonl, line 1: [1, 2] is not an object like {"input"'),
        (b'{"a": 1}\n\xff\xfe', "a.jsonl, line 2: byte 0xff is not UTF-8: save it as UTF-8"),
        (b"[" * 200_000, "a.jsonl, line 1: not "),
        (b'{"a": ' + b"9" * 5000 + b"}", "a.jsonl, line 1: not readable: Exceeds the limit"),
    ],
)
def test_mistakes_are_one_line_with_file_line_and_fix(tmp_path, content, told):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(told)) as caught:
        read_json_lines(tmp_path / "a.jsonl")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_no_file_and_a_folder_are_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"^no such file: '.*none\.jsonl'$"):
        read_json_lines(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match=r"cannot be read: Is a directory$"):
        read_json_lines(tmp_path)


def test_the_example_is_the_readers_own(tmp_path):
    (tmp_path / "a.jsonl").write_text("3\n")
    with pytest.raises(ValueError, match=r'line 1: 3 is not an object like \{"document": 1\}'):
        read_json_lines(tmp_path / "a.jsonl", like='{"document": 1}')
