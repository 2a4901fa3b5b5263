"""The results of a user's query in every format: exact numbers, UTC times, structured lists and maps."""

from __future__ import annotations

import csv
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.report import rows
from tests.warehouse.outcomes import session

QUERY = """
SELECT
    9223372036854775807 AS big,
    18446744073709551615::UBIGINT AS address,
    sum(n) AS hugeint,
    1.50::DECIMAL(9, 2) AS price,
    0.1 + 0.2::DOUBLE AS ratio,
    'NaN'::DOUBLE AS nan,
    TIMESTAMPTZ '2025-11-23 13:13:20+01' AS at,
    DATE '2025-11-23' AS day,
    [1, 2] AS list,
    MAP {'rack': 'r1', 'a': NULL} AS labels,
    MAP([]::VARCHAR[], []::VARCHAR[]) AS no_labels,
    {'a': [1], 'b': TIMESTAMPTZ '2025-11-23 12:13:20+00'} AS struct,
    'ff'::BLOB AS raw,
    NULL AS nothing,
    true AS yes,
    E'=1+1\\n|' AS hostile
FROM (VALUES (9223372036854775807), (1)) AS t(n)
"""
EXPECTED_ROW = {
    "big": 9223372036854775807,
    "address": 18446744073709551615,
    "hugeint": 9223372036854775808,
    "price": "1.50",
    "ratio": 0.30000000000000004,
    "nan": None,
    "at": "2025-11-23T12:13:20Z",
    "day": "2025-11-23",
    "list": [1, 2],
    "labels": {"rack": "r1", "a": None},
    "no_labels": {},
    "struct": {"a": [1], "b": "2025-11-23T12:13:20Z"},
    "raw": "6666",
    "nothing": None,
    "yes": True,
    "hostile": "=1+1\n|",
}


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return session(tmp_path_factory.mktemp("empty"), is_confined=True).sql(QUERY)


def write(format_name: str, result: pa.Table) -> str:
    file = io.StringIO()
    rows.FORMATS[format_name](result, file)
    return file.getvalue()


def test_json_has_every_value(result):
    assert json.loads(write("json", result)) == [EXPECTED_ROW]


def test_json_lines_have_an_object_a_line(result):
    doubled_result = pa.concat_tables([result, result])
    assert [json.loads(line) for line in write("jsonl", doubled_result).splitlines()] == [EXPECTED_ROW] * 2


def test_json_of_no_rows_is_an_empty_list(result):
    assert json.loads(write("json", result.slice(0, 0))) == []
    assert write("jsonl", result.slice(0, 0)) == ""


def test_csv_has_numbers_as_they_are_and_no_formula(result):
    header, row = csv.reader(io.StringIO(write("csv", result)))
    assert header == list(EXPECTED_ROW)
    cells = dict(zip(header, row, strict=True))
    assert cells["big"] == "9223372036854775807"
    assert cells["hugeint"] == "9223372036854775808"
    assert cells["at"] == "2025-11-23T12:13:20Z"
    assert json.loads(cells["labels"]) == {"rack": "r1", "a": None}
    assert cells["nothing"] == ""
    assert cells["hostile"] == r"'=1+1\n|"


def test_a_negative_number_is_no_formula(tmp_path):
    table = session(tmp_path, is_confined=True).sql(
        "SELECT -5 AS n, -1.5 AS price, -2 * 1.5 AS twice, -0.5::DOUBLE AS half"
    )
    assert write("csv", table) == "n,price,twice,half\n-5,-1.5,-3.0,-0.5\n"


@pytest.mark.parametrize("sign", ["=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20"])
def test_what_a_spreadsheet_may_take_for_a_formula_is_text(sign):
    assert write("csv", pa.table({"name": [f" {sign}1+1"]})) == f"name\n' {sign}1+1\n"


@pytest.mark.parametrize("format_name", ["jsonl", "csv"])
def test_an_interval_is_shown_as_duckdb_writes_it(tmp_path, format_name):
    intervals = """
        SELECT to_months(m) + to_days(d) + to_microseconds(us) AS i
        FROM (VALUES (0), (1), (-1), (11), (-13), (24)) AS a(m), (VALUES (0), (1), (-1), (40)) AS b(d),
            (VALUES (0), (1), (-1), (1500000), (-86399999990), (360000000000), (59000000)) AS c(us)
    """
    db = session(tmp_path, is_confined=True)
    interval_texts, texts = (
        write(format_name, db.sql(f"SELECT {cell} AS i FROM ({intervals}) ORDER BY ALL"))
        for cell in ("i", "i::VARCHAR")
    )
    assert interval_texts.count("\n") >= 6 * 4 * 7
    assert sorted(interval_texts.splitlines()) == sorted(texts.splitlines())


def test_markdown_is_one_line_a_row(result):
    lines = write("markdown", result).splitlines()
    assert len(lines) == 3
    assert r"=1+1\\n\|" in lines[2]
    assert "| 9223372036854775807 | 18446744073709551615 |" in lines[2]


def test_a_table_aligns_numbers_right_and_counts_wide_characters():
    table = pa.table({"name": ["a", "日本", None], "n": [1, 12345, -7]})
    assert write("table", table) == "name      n\n----  -----\na         1\n日本  12345\n         -7\n"


def test_a_table_acts_on_no_terminal(result):
    assert all(char.isprintable() or char == "\n" for char in write("table", result))


def test_parquet_is_read_back_as_it_was(result):
    file = io.BytesIO()
    table = result.drop_columns(["nothing", "nan"])  # a column of nulls has no type, NaN equals no value
    rows.FORMATS["parquet"](table, file)
    assert pq.read_table(io.BytesIO(file.getvalue())).equals(table)


def test_a_time_that_python_does_not_have_is_still_shown(result, tmp_path):
    table = session(tmp_path, is_confined=True).sql("SELECT 'infinity'::TIMESTAMP AS at, 1 AS n")
    (row,) = json.loads(write("json", table))
    assert row["n"] == 1
    assert isinstance(row["at"], str)
