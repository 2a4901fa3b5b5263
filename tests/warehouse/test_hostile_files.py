"""Files of a warehouse that others have replaced or forged cost one clear line: no hang, and no file elsewhere."""

from __future__ import annotations

import errno
import gzip
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import query, warehouse
from pipeline.common.errors import AuditError
from tests.warehouse.outcomes import failure, ok, publish, run, skip_checks

OLD, NEW, STAGED = (f"2025110{day}T000000Z-0000000{day}" for day in (1, 2, 3))
# A reader that waits for a writer of a pipe waits for ever.
HANG_S = 60


@pytest.fixture(autouse=True)
def deadline() -> Iterator[None]:
    """End a test that hangs."""

    def expire(*_: object) -> None:
        pytest.fail("hangs")

    old_handler = signal.signal(signal.SIGALRM, expire)
    signal.alarm(HANG_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, old_handler)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A warehouse with two published runs, of which the second has a failed target, and a staged one."""
    root = tmp_path_factory.mktemp("template") / "w"
    publish(root, ok("a"), run_id=OLD)
    publish(root, ok("a", mounts=3), failure("b"), run_id=NEW)
    warehouse.Staging.create(root, run(STAGED, targets=2)).append(ok("a"))
    return root


@pytest.fixture
def root(template: Path, tmp_path: Path) -> Path:
    return shutil.copytree(template, tmp_path / "w")


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """A file outside the warehouse, which nothing may change."""
    path = tmp_path / "victim"
    path.write_text("important")
    yield path
    assert path.read_text() == "important"


def to_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def to_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def to_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to("nothing")


def to_holes(path: Path) -> None:
    """A spool may be as large."""
    if path.name != "outcomes.jsonl":
        os.truncate(path, 64 << 20)


REPLACEMENTS: dict[str, Callable[[Path], None]] = {
    function.__name__.removeprefix("to_"): function
    for function in (to_fifo, to_directory, to_device, to_nothing, to_holes)
}
FILES = [
    f"runs/{NEW}/manifest.json",
    f"runs/{NEW}/inputs.jsonl.gz",
    f"runs/{NEW}/targets-00000.parquet",
    f"runs/{NEW}/list_lrus-00000.parquet",
    f"runs/{NEW}/runs-00000.parquet",
    f"staging/{STAGED}/run.json",
    f"staging/{STAGED}/inputs.jsonl.gz",
    f"staging/{STAGED}/outcomes.jsonl",
]


def revise(root: Path) -> None:
    warehouse.Staging.revise(root, NEW, run_id="20251104T000000Z-00000004", tool_version="1")


def verify(root: Path) -> None:
    for line in warehouse.problems(root, NEW, skip_checks):
        raise AuditError(line)


def read(root: Path) -> None:
    with warehouse.open_tables(root) as tables:
        db = query.Session(tables)
        assert len(db.rows("SELECT target FROM targets")) == 3
        assert len(db.rows("SELECT target FROM list_lrus")) == 12


def resume(root: Path) -> None:
    staging = warehouse.Staging(root, STAGED)
    staging.inputs()
    staging.append(failure("b"))
    if "a" not in staging.finished_targets():
        staging.append(ok("a"))
    staging.publish(skip_checks)


def expire(root: Path) -> None:
    for removal in warehouse.removals(root, warehouse.RetentionRules(last=1), 0):
        removal.carry_out()


def stage(root: Path) -> None:
    values = run("20251105T000000Z-00000005")
    warehouse.Staging.create(root, values, {}, [{"name": "a", "kind": "vmcore"}], carries_cores=True)


COMMANDS: dict[str, Callable[[Path], object]] = {
    "runs": warehouse.overview,
    "verify": verify,
    "read": read,
    "revise": revise,
    "resume": resume,
    "stage": stage,
    "expire": expire,
}


def outcome_of(command: Callable[[Path], object], root: Path) -> str | None:
    """Return the error of a command, if any, which is one line and names a file of the warehouse."""
    try:
        command(root)
    except AuditError as error:
        text = str(error)
    else:
        return None
    assert "\n" not in text
    assert str(root) in text
    return text


@pytest.mark.parametrize("replacement", REPLACEMENTS)
@pytest.mark.parametrize("name", FILES)
def test_a_replaced_file_neither_hangs_nor_counts(root, name, replacement):
    REPLACEMENTS[replacement](root / name)
    command_errors = {}
    for command_name, command in COMMANDS.items():
        copy = shutil.copytree(root, root.parent / command_name / "w", symlinks=True, copy_function=copy_special)
        command_errors[command_name] = outcome_of(command, copy)
    if name.startswith("runs") and "inputs" not in name:
        assert command_errors["verify"] is not None
    if "targets" in name or "list_lrus" in name:
        assert command_errors["read"] is not None


def copy_special(source: str, target: str) -> None:
    if Path(source).is_fifo():
        os.mkfifo(target)
    elif os.path.getsize(source) == 64 << 20:
        shutil.copyfile("/dev/null", target)
        os.truncate(target, 64 << 20)
    else:
        shutil.copy2(source, target)


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_linked_lock_or_spool_changes_no_file_elsewhere(root, victim, link):
    with warehouse.exclusive_audit(root, "prod"):
        pass
    (lock,) = (root / "staging.locks").iterdir()
    spool = root / "staging" / STAGED / "outcomes.jsonl"
    for path in (lock, spool):
        path.unlink()
        link(victim, path)
    kind = "a symbolic link|has another name"
    refusal = pytest.raises(warehouse.WarehouseError, match=f"{lock}: .*({kind}).*; nothing was audited")
    with refusal, warehouse.exclusive_audit(root, "prod"):
        pytest.fail("locked")
    with pytest.raises(warehouse.WarehouseError, match=f"{spool.parent}.*({kind})"):
        warehouse.Staging(root, STAGED)


def test_links_in_staging_are_removed_and_not_what_they_lead_to(root, victim):
    """A run that is a link to a directory is withdrawn as a link."""
    elsewhere = victim.parent / "elsewhere"
    (root / "runs" / OLD).rename(elsewhere)
    (root / "runs" / OLD).symlink_to(elsewhere)
    (root / "staging" / STAGED / "link").symlink_to(victim)
    (root / "staging" / STAGED / "dangling").symlink_to("nothing")
    (root / "staging" / "20251031T000000Z-00000000.expired").symlink_to(elsewhere)
    expire(root)
    assert [path.name for path in (root / "runs").iterdir()] == [NEW]
    assert list((root / "staging").iterdir()) == []
    assert len(list(elsewhere.iterdir())) == 10


def replace(**values: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda content: {**content, **values}


def with_version(**values: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda content: {**content, "versions": {**content["versions"], **values}}


def with_file(**values: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda content: {**content, "files": [{**content["files"][0], **values}, *content["files"][1:]]}


FORGED_MANIFESTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a negative count": replace(targets=-1),
    "a huge count": replace(targets=10**400),
    "a count that is a truth value": replace(targets=True),
    "a count that is a fraction": replace(targets=1.5),
    "outcomes that are a list": replace(outcomes=["ok"]),
    "an outcome that is text": replace(outcomes={"ok": "1"}),
    "an audit that is a number": replace(audit=7),
    "a run id that leads elsewhere": replace(run_id="../../etc"),
    "a revised run that leads elsewhere": replace(revision_of="../../etc"),
    "complete as text": replace(complete="yes"),
    "a time before all years": replace(started_at="0000-01-01T00:00:00+00:00"),
    "a time that is a number": replace(finished_at=0),
    "no versions": replace(versions={}),
    "a schema version that is text": with_version(schema="6"),
    "a schema version that is a truth value": with_version(schema=True),
    "a tool version that is a list": with_version(tool=[]),
    "a table that leads elsewhere": with_file(table="../x", path="../x-00000.parquet"),
    "a table with an absolute path": with_file(table="/etc/x", path="/etc/x-00000.parquet"),
    "a table that is a number": with_file(table=1),
    "a file of negative size": with_file(bytes=-1),
    "a file of another key": with_file(colour="red"),
    "a file twice": lambda content: {**content, "files": content["files"] * 2},
    "files that are no objects": replace(files=["targets-00000.parquet"]),
    "files that are a map": replace(files={}),
    "nothing": lambda content: {},
    "a number": lambda content: 1,
    "null": lambda content: None,
}


@pytest.mark.parametrize("kind", FORGED_MANIFESTS)
def test_a_forged_manifest_is_refused_by_every_command(root, kind):
    path = root / "runs" / NEW / "manifest.json"
    path.write_text(json.dumps(FORGED_MANIFESTS[kind](json.loads(path.read_text()))))
    check_refusals(root, path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": ' * 100_000, "nested too deeply"),
        ("[" * 100_000, "nested too deeply"),
        ('{"run_id": 1, "run_id": 2}', "a key occurs twice"),
        ('{"targets": ' + "9" * 10_000 + "}", "Exceeds the limit"),
        ("\0" * 4096, "Expecting value"),
        ("", "Expecting value"),
        (" " * (1 << 20) + "{}", "larger than 1048576 bytes"),
    ],
    ids=["nested objects", "nested arrays", "a key twice", "digits", "zeros", "empty", "large"],
)
def test_a_text_that_is_no_small_object_is_refused(root, text, words):
    path = root / "runs" / NEW / "manifest.json"
    path.write_text(text)
    assert words in check_refusals(root, path)


def check_refusals(root: Path, path: Path) -> str:
    for command in (warehouse.overview, verify, warehouse.tables, revise, expire):
        with pytest.raises(warehouse.WarehouseError) as error:
            command(root) if command is not verify else raise_problem(root)
        assert str(error.value).startswith(f"{path}: invalid manifest: ")
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 1_000
    assert len(list((root / "runs").iterdir())) == 2
    return str(error.value)


def raise_problem(root: Path) -> None:
    for line in warehouse.problems(root, NEW, skip_checks):
        raise warehouse.WarehouseError(line)


FORGED_RUN_FILES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a run that leads elsewhere": replace(run_id="../../runs"),
    "another run": replace(run_id=OLD),
    "a revised run that leads elsewhere": replace(revision_of="../../etc"),
    "a start after all years": replace(started_at=2**62),
    "a negative count": replace(targets=-1),
    "a number that is text": replace(number="1"),
    "an unknown field": replace(colour="red"),
    "nothing": lambda content: {},
    "a list": lambda content: [],
}


@pytest.mark.parametrize("kind", FORGED_RUN_FILES)
def test_a_forged_run_file_is_refused(root, kind):
    path = root / "staging" / STAGED / "run.json"
    path.write_text(json.dumps(FORGED_RUN_FILES[kind](json.loads(path.read_text()))))
    for command in (warehouse.overview, resume):
        with pytest.raises(warehouse.WarehouseError, match=f"^{path}: not a staged run: .*; remove it with: "):
            command(root)
    assert warehouse.published_run_ids(root, None) == [OLD, NEW]


@pytest.mark.parametrize("lines", [[b"{" + b" " * (2 << 20) + b"}\n"], [b"{}\n", b'{"name": "a"}']])
def test_inputs_that_unpack_to_a_huge_or_a_torn_line_are_refused(root, lines):
    path = root / "staging" / STAGED / "inputs.jsonl.gz"
    with gzip.open(path, "wb") as file:
        file.writelines(lines)
    with pytest.raises(warehouse.WarehouseError, match=f"^{path}: cannot be read: a target, or all of them, take more"):
        warehouse.Staging(root, STAGED).inputs()


@pytest.mark.parametrize("table", ["targets", "list_lrus"])
def test_a_table_of_another_run_is_found_by_verify_and_not_revised(root, table):
    path = root / f"runs/{NEW}/{table}-00000.parquet"
    shutil.copy(root / f"runs/{OLD}/{path.name}", path)
    assert any(line.startswith(f"{path}: ") for line in warehouse.problems(root, NEW, skip_checks))
    with pytest.raises(warehouse.WarehouseError, match=f"^{path}: "):
        revise(root)


def test_a_damaged_table_is_not_carried_over_to_a_revision(root):
    """A new run with its rows would have a valid checksum."""
    path = root / f"runs/{NEW}/list_lrus-00000.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 10] ^= 1
    path.write_bytes(content)
    with pytest.raises(warehouse.WarehouseError, match=f"^{path}: .*its good rows were not carried over"):
        revise(root)


def test_zeros_that_a_power_cut_left_in_the_spool_are_no_outcome(root):
    staging = warehouse.Staging(root, STAGED)
    staging.append(failure("b"))
    path = staging.directory / "outcomes.jsonl"
    del staging
    content = bytearray(path.read_bytes())
    content[512:1024] = bytes(512)
    path.write_bytes(content)
    assert warehouse.Staging(root, STAGED).finished_targets() == {"b"}
    resume(root)
    assert warehouse.published_run_ids(root, None) == [OLD, NEW, STAGED]


def test_a_run_whose_name_is_not_durable_is_withdrawn_and_can_be_resumed(root, monkeypatch):
    fsync = os.fsync

    def fail_once_renamed(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}") == str(root / "runs") and (root / "runs" / STAGED).exists():
            raise OSError(errno.EIO, "Input/output error")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail_once_renamed)
    with pytest.raises(warehouse.WarehouseError, match=f"Input/output error; nothing was pub.* resume {STAGED}$"):
        resume(root)
    assert warehouse.published_run_ids(root, None) == [OLD, NEW]
    monkeypatch.undo()
    resume(root)
    assert warehouse.published_run_ids(root, None) == [OLD, NEW, STAGED]
