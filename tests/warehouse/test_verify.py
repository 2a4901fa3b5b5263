"""`verify` names every damaged file of a published run; `runs` lists published and staged runs."""

from __future__ import annotations

import json
import shutil

import pytest

from pipeline import cli, warehouse
from tests.warehouse.outcomes import failure, ok, publish, run, set_cell

OLD, NEW = "20251101T000000Z-aaaaaaaa", "20251102T000000Z-bbbbbbbb"


@pytest.fixture(scope="module")
def published_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    publish(root, ok("a"), failure("b"), run_id=OLD)
    publish(root, ok("a"), run_id=NEW, audit="prod")
    return root


@pytest.fixture
def root(published_root, tmp_path):
    return shutil.copytree(published_root, tmp_path / "w")


def flip_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 10] ^= 1  # in the data; most of a small Parquet file is its footer
    path.write_bytes(content)


def drop_last_byte(path):
    path.write_bytes(path.read_bytes()[:-1])


def add_row_to_manifest(path):
    manifest = json.loads(path.read_bytes())
    for file in manifest["files"]:
        file["rows"] += file["table"] == "memcgs"
    path.write_text(json.dumps(manifest))


DAMAGE = {
    "a bit": ("list_lrus-00000.parquet", flip_bit, ["list_lrus-00000.parquet: sha256 is "]),
    "cut": (
        "targets-00000.parquet",
        drop_last_byte,
        ["targets-00000.parquet: cannot be read as Parquet: ", ": bytes is "],
    ),
    "gone": ("memcgs-00000.parquet", lambda path: path.unlink(), ["memcgs-00000.parquet: No such file or directory"]),
    "inputs": ("inputs.jsonl.gz", flip_bit, ["inputs.jsonl.gz: sha256 is "]),
    "rows": ("manifest.json", add_row_to_manifest, ["memcgs-00000.parquet: rows is 3, but the manifest has 4"]),
    "manifest": ("manifest.json", drop_last_byte, ["manifest.json: invalid manifest: "]),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_a_line_that_names_the_file(root, kind, capsys):
    name, damage, texts = DAMAGE[kind]
    if kind == "manifest":
        path = root / "runs" / OLD / name
        path.write_text(path.read_text().rstrip()[:-1])
    else:
        damage(root / "runs" / OLD / name)
    assert cli.main(["verify", "-w", str(root)]) == cli.FAILED
    out, err = capsys.readouterr()
    lines = out.splitlines()
    for text in texts:
        assert any(line.startswith(f"{root}/runs/{OLD}/") and text in line for line in lines), out
    assert all(OLD in line for line in lines)
    assert err == f"runs verified: 2; problems: {len(lines)}\n"
    assert cli.main(["verify", NEW[:8], "-w", str(root)]) == cli.OK, "another run can be verified by itself"


def test_rows_that_contradict_one_another_are_a_problem_of_their_target(tmp_path, capsys):
    publish(tmp_path, set_cell(ok("b\x1b[31m"), "list_lrus", "list_lru_one_bytes", 1), run_id=OLD)
    assert cli.main(["verify", "-w", str(tmp_path)]) == cli.FAILED
    lines = capsys.readouterr().out.splitlines()
    assert any(f"{OLD}: check object_bytes: 'b\\x1b[31m': " in line for line in lines), lines


def test_what_is_whole_has_no_problem(root, capsys):
    assert cli.main(["verify", "-w", str(root)]) == cli.OK
    assert capsys.readouterr() == ("", "runs verified: 2; problems: 0\n")


def test_runs_are_listed_with_coverage_and_size_and_so_is_what_is_staged(root, capsys):
    publish(root, ok("a"), failure("b", "not_run"), run_id="20251103T000000Z-cccccccc", audit="odd\x1b[2J\n\u202e")
    staging = warehouse.Staging.create(root, run("20251104T000000Z-dddddddd", audit="prod", targets=3))
    staging.append(ok("a"))
    assert cli.main(["runs", "-w", str(root)]) == cli.OK
    text = capsys.readouterr().out
    assert text.count("\n") == 5
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "running" in text.splitlines()[-1]
    assert "1 of 3" in text.splitlines()[-1]
    del staging
    assert cli.main(["runs", "-w", str(root), "--format", "json"]) == cli.OK
    text = capsys.readouterr().out
    assert text.isascii()
    rows = {row["run_id"]: row for row in json.loads(text)}
    assert [row["state"] for row in rows.values()] == ["published"] * 3 + ["unfinished"]
    assert [row["good"] for row in rows.values()] == [1, 1, 1, None]
    assert [row["targets"] for row in rows.values()] == [2, 1, 2, 3]
    assert [row["collected"] for row in rows.values()] == [2, 1, 1, 1]
    assert [row["complete"] for row in rows.values()] == [True, True, False, None]
    assert rows[OLD]["size_bytes"] == sum(file.stat().st_size for file in (root / "runs" / OLD).glob("*.parquet"))
    assert rows[OLD]["started_at"] == "2025-11-23T12:13:20Z"
