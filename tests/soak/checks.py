"""What must hold after every run, read from the files and from /proc and not through the tool.

Each check yields a line for each violation.
"""

from __future__ import annotations

import collections
import hashlib
import json
import os
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tests import processes
from tests.soak.targets import BYTES_COLUMNS, Figures, Kind

# Files of a published run that are no table.
_OTHER_FILES = {"inputs.jsonl.gz", "manifest.json"}
_HOST_TABLES = ("superblocks", "list_lrus", "memcgs", "memcg_memory", "dying_memcg_pages")
# A child dies with its parent, and Ray's processes follow their raylet; a busy machine lets them wait.
_EXIT_S = 60.0


def manifests(warehouse: Path) -> dict[str, dict[str, Any]]:
    """Return the manifests of the published runs by run_id."""
    found = {}
    for path in warehouse.glob("runs/*/manifest.json"):
        try:
            found[path.parent.name] = json.loads(path.read_bytes())
        except FileNotFoundError:  # expired meanwhile
            continue
    return found


def rows_by_table(manifest: Mapping[str, Any]) -> dict[str, int]:
    rows: collections.Counter[str] = collections.Counter()
    for file in manifest["files"]:
        rows[file["table"]] += file["rows"]
    return dict(rows)


def run(folder: Path, targets: Mapping[str, Kind], figures: Mapping[str, Figures], max_disturbed: int) -> Iterator[str]:
    """Check a published run: its files, one final row for each target, and the rows of each.

    :param max_disturbed: how many targets may be lost or killed by the faults, rather than end as their kind does.
    """
    manifest = json.loads((folder / "manifest.json").read_bytes())
    digests = {file["path"]: file["sha256"] for file in manifest["files"]}
    digests["inputs.jsonl.gz"] = manifest["inputs_sha256"]
    present = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    present.pop("manifest.json")
    if present != digests:
        yield f"{folder}: files differ from the manifest: {sorted(set(present.items()) ^ set(digests.items()))}"
        return
    tables = {name: _table(folder, manifest, name) for name in rows_by_table(manifest)}
    for name, rows in rows_by_table(manifest).items():
        if tables[name].num_rows != rows:
            yield f"{folder}: {name} has {tables[name].num_rows} rows, its manifest {rows}"
    rows = tables["targets"].to_pylist()
    names = sorted(row["target"] for row in rows)
    if names != sorted(targets):
        yield f"{folder}: final rows of {_difference(names, sorted(targets))}"
        return
    counts = collections.Counter(row["status"] for row in rows)
    if counts != manifest["outcomes"] or manifest["targets"] != len(targets):
        yield f"{folder}: {dict(counts)}, but the manifest has {manifest['outcomes']} of {manifest['targets']}"
    disturbed = 0
    for row in rows:
        kind = targets[row["target"]]
        is_expected = any(row["status"] == status and end in (None, row["error_type"]) for status, end in kind.ends)
        disturbed += not is_expected
        if not is_expected and (row["status"] == "ok" or disturbed > max_disturbed):
            yield f"{folder}: {row['target']} ends as {row['status']} {row['error_type']}: {row['error']}"
    yield from _host_rows(folder, tables, {row["target"]: row for row in rows}, targets, figures)


def _table(folder: Path, manifest: Mapping[str, Any], name: str) -> pa.Table:
    files = [folder / file["path"] for file in manifest["files"] if file["table"] == name]
    return pa.concat_tables([pq.ParquetFile(file).read() for file in files])


def _host_rows(
    folder: Path,
    tables: Mapping[str, pa.Table],
    rows: Mapping[str, Mapping[str, Any]],
    targets: Mapping[str, Kind],
    figures: Mapping[str, Figures],
) -> Iterator[str]:
    """Check that each good target has the rows and bytes of its core, and each other one none."""
    for name in _HOST_TABLES:
        counts = collections.Counter(tables[name]["target"].to_pylist())
        for target, row in rows.items():
            core = targets[target].core
            expected = figures[core].rows.get(name, 0) if row["status"] == "ok" and core else 0
            if counts.pop(target, 0) != expected and (core or row["status"] != "ok"):
                yield f"{folder}: {target} ({row['status']}) has another number of {name} than {expected}"
        if counts:
            yield f"{folder}: {name} of strangers: {sorted(counts)}"
    lists = tables["list_lrus"]
    sums = [pc.fill_null(lists[column], 0) for column in BYTES_COLUMNS]
    total = pa.table({"target": lists["target"], **dict(zip(BYTES_COLUMNS, sums, strict=True))})
    totals = {
        row["target"]: sum(row[f"{column}_sum"] for column in BYTES_COLUMNS)
        for row in total.group_by("target").aggregate([(column, "sum") for column in BYTES_COLUMNS]).to_pylist()
    }
    for target, row in rows.items():
        core = targets[target].core
        expected = figures[core].list_lru_bytes if row["status"] == "ok" and core else None
        if core and row["list_lru_bytes"] != expected:
            yield f"{folder}: {target} has {row['list_lru_bytes']} bytes in list_lrus instead of {expected}"
        if core and expected is not None and totals.get(target) != expected:
            yield f"{folder}: the list_lrus of {target} sum to {totals.get(target)} bytes instead of {expected}"
    attempts = collections.Counter(tables["attempts"]["target"].to_pylist())
    for target, row in rows.items():
        if attempts[target] != row["attempts"]:
            yield f"{folder}: {target} has {attempts[target]} attempts instead of {row['attempts']}"


def _difference(found: Collection[str], expected: Collection[str]) -> str:
    extra = collections.Counter(found) - collections.Counter(expected)
    missing = collections.Counter(expected) - collections.Counter(found)
    return f"{len(found)} instead of {len(expected)} targets, too many {dict(extra)}, missing {dict(missing)}"


def disk(warehouse: Path, audits: int) -> Iterator[str]:
    """Check that the warehouse has nothing but the files of published runs and the lock of each audit."""
    expected = set()
    for run_id, manifest in manifests(warehouse).items():
        expected |= {f"runs/{run_id}/{file['path']}" for file in manifest["files"]}
        expected |= {f"runs/{run_id}/{name}" for name in _OTHER_FILES}
    paths = [path for path in warehouse.rglob("*") if not path.is_dir()]
    present = {str(path.relative_to(warehouse)) for path in paths}
    locks = {name for name in present if name.startswith("staging.locks/")}
    if present - locks != expected:
        yield f"the warehouse has {sorted(present - locks - expected)[:9]}, and lacks {sorted(expected - present)[:9]}"
    if len(locks) > audits + 1:
        yield f"the warehouse has {len(locks)} locks for {audits} audits: {sorted(locks)}"
    if directories := [path for path in warehouse.glob("staging*/*") if path.is_dir()]:
        yield f"staging has {[path.name for path in directories]}"


@dataclass(frozen=True)
class Machine:
    """What the machine, that is, the namespaces of the soak, holds: processes, files, sockets and System V's IPC."""

    pids: frozenset[int]
    files: frozenset[str]
    sockets: frozenset[str]

    @classmethod
    def now(cls, spared: str) -> Machine:
        """Look around, except at the directory `spared` and the processes that have it as TMPDIR."""
        pids = {int(name) for name in os.listdir("/proc") if name.isdigit()} - processes.find(f"TMPDIR={spared}").keys()
        files = {name for name in _names("/tmp", 2) | _names("/dev/shm", 1) if not name.startswith(f"{spared}/")}
        for table in ("shm", "sem", "msg"):
            files |= {f"System V {table} {line}" for line in Path("/proc/sysvipc", table).read_text().splitlines()[1:]}
        lines = Path("/proc/net/unix").read_text(errors="replace").splitlines()
        names = {fields[7] for line in lines if len(fields := line.split()) > 7}
        sockets = {name for name in names if not name.startswith(f"{spared}/")}
        return cls(frozenset(pids), frozenset(files), frozenset(sockets))


def leftovers(before: Machine, spared: str) -> Iterator[str]:
    """Check that nothing is left that was not there before, once what is ending had time for it."""
    deadline = time.monotonic() + _EXIT_S
    while (left := list(_left(before, Machine.now(spared)))) and time.monotonic() < deadline:
        time.sleep(0.1)
    yield from left


def _left(before: Machine, now: Machine) -> Iterator[str]:
    for pid in now.pids - before.pids:
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:  # it has ended
            continue
        yield f"process {pid} ({state}) is left: {command}"
    for name in sorted(now.files - before.files):
        yield f"{name} is left"
    for name in sorted(now.sockets - before.sockets):
        yield f"socket {name} is left"


def _names(directory: str, depth: int) -> set[str]:
    """Return the paths below a directory, down to a depth."""
    names = set()
    with os.scandir(directory) as entries:
        for entry in entries:
            names.add(entry.path)
            if depth > 1 and entry.is_dir(follow_symlinks=False) and entry.path != "/tmp/w":
                names |= _names(entry.path, depth - 1)
    return names
