"""Each SQL file is one statement that makes what its name says, asks its question first, and has a case here."""

from __future__ import annotations

import re
from pathlib import Path

import duckdb
import pytest

from pipeline.common import data

HERE = Path(__file__).parent
FILES = {f"{file.parent.name}/{file.stem}": file for file in sorted(data.path("sql").glob("*/*.sql"))}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_one_statement_under_the_question_that_it_answers(name):
    folder, stem = name.split("/")
    text = FILES[name].read_text(encoding="utf-8")
    assert re.match(r"-- [A-Z][^?]*\?", text)
    assert max(map(len, text.splitlines())) <= 120
    (statement,) = duckdb.extract_statements(text)
    made = {
        "views": rf"^CREATE VIEW {stem} AS$",
        "macros": rf"^CREATE MACRO {stem}\(([a-z_]+(, [a-z_]+)*)?\) AS( TABLE)?$",
        "checks": "",
        "reports": "",
    }[folder]
    assert re.search(made, text, re.MULTILINE)
    kind = duckdb.StatementType.SELECT if folder in ("checks", "reports") else duckdb.StatementType.CREATE
    assert statement.type == kind


@pytest.mark.parametrize("name", FILES)
def test_a_file_has_a_case_with_rows_worked_out_by_hand(name):
    folder, stem = name.split("/")
    cases = list((HERE / folder / stem).glob("*.yaml"))
    if folder == "reports":
        # Rows of a view as they are need none; what advice adds up is in tests/report/test_advice.py.
        cases += (
            [name] if re.search(r"^FROM ", FILES[name].read_text("utf-8"), re.MULTILINE) or stem == "advice" else []
        )
    elif folder != "checks":
        cases = [case for case in HERE.glob("views/*/*.yaml") if re.search(rf"\b{stem}\b", case.read_text("utf-8"))]
    # A macro is what the view of its name is made of.
    assert cases or HERE.joinpath("views", stem.removesuffix("_at")).is_dir()
