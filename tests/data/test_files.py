"""CSV, TSV, JSONL and Parquet files of the user: what is read, and every way they can be wrong."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from steelyard.data import load
from steelyard.data.files import read_columns

REVIEWS = [(f"the film, number {i},\nis {'good' if i % 2 else 'bad'}", i % 2) for i in range(60)]


def _csv(path: Path, rows: list, header: tuple = ("text", "label"), delimiter: str = ",") -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])
    return str(path)


def _jsonl(path: Path, rows: list) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_the_same_rows_from_every_format(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet", reason="Parquet needs pyarrow")
    records = [{"text": text, "label": label} for text, label in REVIEWS]
    parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "d.parquet")
    paths = [
        _csv(tmp_path / "a.csv", REVIEWS),
        _csv(tmp_path / "b.tsv", REVIEWS, delimiter="\t"),
        _jsonl(tmp_path / "c.jsonl", records),
        str(tmp_path / "d.parquet"),
    ]
    tables = [load(path) for path in paths]
    for table in tables:
        assert table.kind == "text"
        assert table.classes == ("0", "1")
        assert table.n + table.n_test == 60
        assert 0 < table.n_test < 20
        assert table.train_x == tables[0].train_x
        assert table.train_y is not None
        np.testing.assert_array_equal(table.train_y, tables[0].train_y)
    expected = dict(REVIEWS)
    labels = [expected[text] for text in tables[0].train_x]
    np.testing.assert_array_equal(tables[0].train_y, labels)


def test_hold_out_is_fixed_by_the_seed(tmp_path: Path) -> None:
    path = _csv(tmp_path / "a.csv", REVIEWS)
    first, again, other = load(path, seed=1), load(path, seed=1), load(path, seed=2)
    assert first.test_x == again.test_x != other.test_x
    assert not set(first.test_x) & set(first.train_x)


def test_a_test_file_is_used_as_it_is(tmp_path: Path) -> None:
    train = _csv(tmp_path / "a.csv", [("x", "no"), ("y", "yes")])
    test = _csv(tmp_path / "b.csv", [("z", "yes")])
    table = load(train, test=test)
    assert table.train_x == ["x", "y"]
    assert table.test_x == ["z"]
    assert table.classes == ("no", "yes")
    np.testing.assert_array_equal(table.test_y, [1])


def test_columns_by_usual_name_or_as_told(tmp_path: Path) -> None:
    rows = [("s", "p", "1"), ("t", "q", "0")]
    usual = _csv(tmp_path / "a.csv", rows, header=("Sentence", "note", "Target"))
    assert load(usual, test=usual).train_x == ["s", "t"]
    told = _csv(tmp_path / "b.csv", rows, header=("one", "two", "three"))
    table = load(told, test=told, text="two", label="one")
    assert table.train_x == ["p", "q"]
    assert table.classes == ("s", "t")


def test_numbers_without_text_are_features(tmp_path: Path) -> None:
    rows = [(i, i * 0.5, "Bern", i % 2, "") for i in range(80)]
    rows[5] = (5, -2.5, "Bern", 1, "9")
    path = _csv(tmp_path / "a.csv", rows, header=("id", "width", "city", "label", "rest"))
    table = load(path)
    assert table.kind == "features"
    assert isinstance(table.train_x, np.ndarray)
    assert table.train_x.shape == (table.n, 2)
    assert table.train_x.dtype == np.float32
    assert "columns not used: city, rest" in table.source


def test_text_alone_is_language_modelling(tmp_path: Path) -> None:
    alone = _csv(tmp_path / "a.csv", [(t,) for t, _ in REVIEWS] + [(" ",)], header=("text",))
    asked = _csv(tmp_path / "b.csv", REVIEWS)
    for table in (load(alone), load(asked, label="none")):
        assert table.train_y is None
        assert table.test_y is None
        assert table.classes == ()
        assert table.n + table.n_test == 60


def test_byte_order_mark_and_crlf(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("\ufefftext,label\r\nfür,0\r\n\r\ngegen,1\r\n".encode())
    columns = read_columns(str(path))
    assert columns.cells == {"text": ["für", "gegen"], "label": ["0", "1"]}
    assert list(columns.places) == [2, 4]


def test_cells_longer_than_the_csv_module_allows(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    path = _csv(tmp_path / "a.csv", [("x" * (limit + 1), 0), ("y", 1)])
    assert len(load(path, test=path).train_x[0]) == limit + 1
    assert csv.field_size_limit() == limit


HEAD = b"text,label\n"
FIRST = b'{"text": "a", "label": 0}\n'
BROKEN = {
    "empty.csv": (b"", "is empty: 0 bytes"),
    "header.csv": (HEAD, "is empty: it has no rows"),
    "noheader.csv": (b"\n", "no header"),
    "latin.csv": (HEAD + b"ok,0\nf\xfcr,1\n", "line 3: byte 0xfc is not UTF-8"),
    "ragged.csv": (HEAD + b"a,0\nb,c,1\n", "line 3: 3 cells, the header has 2"),
    "quote.csv": (HEAD + b'a,0\n"b" x,1\n', "line 3: not valid CSV"),
    "twice.csv": (b"text,text\na,b\n", "column 'text' occurs twice"),
    "blank.csv": (HEAD + b"a,0\n ,1\n", "line 3: column 'text' is empty"),
    "nolabel.csv": (b"text,class\na,0\nb,1\n", "no label column among 'text', 'class'"),
    "negative.csv": (HEAD + b"a,0\nb,1\nc,-1\n", "line 4: label '-1' is negative"),
    "range.csv": (HEAD + b"a,0\nb,1\nc,7\n", "line 4: label 7 is out of range"),
    "single.csv": (HEAD + b"a,1\nb,1\n", "two classes are needed"),
    "words.csv": (b"city,label\nBern,0\nBasel,1\n", "neither a text column nor numbers"),
    "bad.jsonl": (FIRST + b'{"text": "b" "label": 1}\n', "line 2: not valid JSON"),
    "list.jsonl": (b"[1, 2]\n", r"line 1: \[1, 2\] is not an object"),
    "deep.jsonl": (b"[" * 200_000, "line 1: not readable|line 1: not valid JSON"),
    "lacks.jsonl": (FIRST + b'{"text": "b"}\n', "line 2: the label is empty"),
    "number.jsonl": (FIRST + b'{"text": 3, "label": 1}\n', "line 2: .* holds 3, not text"),
    "half.jsonl": (FIRST + b'{"text": "\\ud800", "label": 1}\n', "half a surrogate pair"),
    "bad.parquet": (b"PAR1 not really", "not a readable Parquet file|Parquet needs pyarrow"),
    "data.xlsx": (b"x", r"unknown suffix '\.xlsx'"),
    "pickle.pkl": (b"x", r"unknown suffix '\.pkl'"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_one_line(tmp_path: Path, name: str) -> None:
    content, message = BROKEN[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        load(str(path))
    assert "\n" not in str(error.value)
    assert name in str(error.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("nan", "line 4, column 'width': 'nan' is not a finite"),
        ("inf", "line 4, column 'width': 'inf' is not a finite"),
        ("1e300", "line 4, column 'width': '1e300' is not a finite"),
        ("", "line 4, column 'width': '' is not a number"),
        ("wide", "line 4, column 'width': 'wide' is not a number"),
    ],
)
def test_features_must_be_finite(tmp_path: Path, value: str, message: str) -> None:
    rows = [("1", 0), ("2", 1), (value, 0), ("3", 1), ("4", 0)]
    with pytest.raises(ValueError, match=message):
        load(_csv(tmp_path / "a.csv", rows, header=("width", "label")))


def test_wrong_column_names_the_closest_and_all(tmp_path: Path) -> None:
    path = _csv(tmp_path / "a.csv", REVIEWS, header=("comment", "stars"))
    with pytest.raises(
        ValueError, match=r"'coment': did you mean 'comment'\? there are 'comment', 'stars'"
    ):
        load(path, text="coment", label="stars")
    with pytest.raises(ValueError, match="no label column 'zzz': there are 'comment', 'stars'"):
        load(path, text="comment", label="zzz")
    with pytest.raises(ValueError, match="cannot be both text and label"):
        load(path, text="comment", label="comment")


def test_a_test_file_that_does_not_fit(tmp_path: Path) -> None:
    train = _csv(tmp_path / "a.csv", REVIEWS)
    other = _csv(tmp_path / "b.csv", REVIEWS, header=("text", "stars"))
    unseen = _csv(tmp_path / "c.csv", [("x", 2)])
    with pytest.raises(ValueError, match=r"b\.csv: no label column 'label'"):
        load(train, test=other)
    with pytest.raises(ValueError, match=r"c\.csv, line 2: label 2 does not occur in training"):
        load(train, test=unseen)
    with pytest.raises(ValueError, match=r"gone\.csv: there is no such file"):
        load(train, test=str(tmp_path / "gone.csv"))


def test_too_few_rows_to_hold_out(tmp_path: Path) -> None:
    path = _csv(tmp_path / "a.csv", [("x", 0), ("y", 1)])
    with pytest.raises(ValueError, match="no good tenth of 2 rows to hold out"):
        load(path)


def test_options_that_do_not_apply(tmp_path: Path) -> None:
    path = _csv(tmp_path / "a.csv", REVIEWS)
    with pytest.raises(ValueError, match="'size=8' does not apply"):
        load(path, size=8)
