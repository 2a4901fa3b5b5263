"""Each SQL file is one statement of its name under its question, and has a case here."""

from __future__ import annotations

import re
from pathlib import Path

import duckdb
import pytest

from pipeline.common import data

SQL_TESTS = Path(__file__).parent
FILES = {f"{file.parent.name}/{file.stem}": file for file in sorted(data.path("sql").glob("*/*.sql"))}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_one_statement_under_the_question_that_it_answers(name):
    folder, stem = name.split("/")
    text = FILES[name].read_text(encoding="utf-8")
    assert re.match(r"-- [A-Z][^?]*\?", text)
    assert max(map(len, text.splitlines())) <= 120
    (statement,) = duckdb.extract_statements(text)
    pattern = {
        "views": rf"^CREATE VIEW {stem} AS$",
        "macros": rf"^CREATE MACRO {stem}\(([a-z_]+(, [a-z_]+)*)?\) AS( TABLE)?$",
        "checks": "",
        "reports": "",
    }[folder]
    assert re.search(pattern, text, re.MULTILINE)
    kind = duckdb.StatementType.SELECT if folder in ("checks", "reports") else duckdb.StatementType.CREATE
    assert statement.type == kind


@pytest.mark.parametrize("name", FILES)
def test_a_file_has_a_case_with_rows_worked_out_by_hand(name):
    folder, stem = name.split("/")
    cases = list((SQL_TESTS / folder / stem).glob("*.yaml"))
    if folder == "reports":
        # A report that only selects from a view needs no case. tests/report/test_advice.py has those of advice.
        cases += (
            [name] if re.search(r"^FROM ", FILES[name].read_text("utf-8"), re.MULTILINE) or stem == "advice" else []
        )
    elif folder != "checks":
        cases = [
            case for case in SQL_TESTS.glob("views/*/*.yaml") if re.search(rf"\b{stem}\b", case.read_text("utf-8"))
        ]
    # The cases of a view are also those of its macro.
    assert cases or SQL_TESTS.joinpath("views", stem.removesuffix("_at")).is_dir()


def test_an_internal_view_or_macro_serves_other_sql_and_a_public_one_is_documented():
    names = {name.partition("/")[2]: file for name, file in FILES.items() if name.startswith(("views/", "macros/"))}
    guide = (SQL_TESTS.parents[1] / "docs" / "sql.md").read_text("utf-8")
    documented_names = {word for word in re.findall(r"\w+", guide) if word in names}
    # The guide names the `_at` macros and the `latest_` views as two groups.
    public_names = {name for name in names if name.removesuffix("_at").removeprefix("latest_") in documented_names}
    internal_names = {name for name in names if name.startswith("_")}
    assert public_names == names.keys() - internal_names
    for name in internal_names:
        texts = [file.read_text("utf-8") for file in FILES.values() if file.stem != name]
        assert any(re.search(rf"\b{name}\b", text) for text in texts), name
