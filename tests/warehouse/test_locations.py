"""Locations of a warehouse: a directory, a file URI, and URIs that name none."""

from __future__ import annotations

import pytest

from pipeline import cli, warehouse
from tests.warehouse.outcomes import STARTED_AT, ok, publish

RUN_ID = "20251101T000000Z-aaaaaaaa"


def test_a_file_uri_is_the_directory(tmp_path):
    publish(f"file://{tmp_path}/w%20x", ok("a"), run_id=RUN_ID, started_at=STARTED_AT)
    assert [manifest.run_id for manifest in warehouse.published_runs(tmp_path / "w x")] == [RUN_ID]
    assert list((tmp_path / "w x" / "staging").iterdir()) == []


@pytest.mark.parametrize(
    ("location", "error_text"),
    [
        ("gs://bucket/w", "a warehouse is a directory, file:///PATH or s3://BUCKET/PREFIX"),
        ("s3:///w", "a warehouse is a directory"),
        ("s3://bucket/w?regoin=x", "unknown option 'regoin'"),
        ("s3://key:secret@bucket/w", "the URI contains credentials"),
    ],
)
def test_a_uri_that_names_no_warehouse_is_a_usage_error(location, error_text, capsys):
    assert cli.main(["runs", "-w", location]) == cli.USAGE
    err = capsys.readouterr().err
    assert error_text in err
    assert "secret" not in err
