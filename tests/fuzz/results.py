"""Parsers of what collectors, ssh and hosts print, and of the files of a warehouse."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.fanout.runner import child, frame
from pipeline.fanout.transports import standalone
from pipeline.fanout.transports.session import drgn_wheels, failures
from pipeline.fanout.workers import _with_json_tables
from pipeline.warehouse import outcome, rows, runs, schema
from pipeline.warehouse.errors import WarehouseError
from pipeline.warehouse.store import local_folder
from tests.fuzz.target import Target, file_with, scratch
from tests.warehouse import outcomes

# Too deep for a recursive parser.
NESTED = b"[" * 4000
RUNS = Path(__file__).parents[1] / "warehouse"


def parse_frame(data: bytes) -> None:
    """Parse what a child prints, and convert its rows as a run does: no frame may break it."""
    result = frame.parse(frame.HEADER + data)
    if isinstance(result, frame.Failure):
        child.error_line(result.error)
        return
    attempt = _with_json_tables({"tables": result.tables})
    _store({**_driver_row(), **result.columns}, attempt["tables"])


def _driver_row() -> dict[str, Any]:
    return {**outcomes.outcome("web-1", "ok", {}, {})["row"]}


def _store(row: dict[str, Any], tables: str) -> None:
    """Convert an outcome to Arrow tables; each has the types of the schema, and one row of the target."""
    given = {"target": "web-1", "row": row, "attempts": outcomes.ok()["attempts"], "tables": tables}
    entry, spooled = outcome.spool_entry(given)
    converted = rows.to_tables([rows.Spooled("web-1", entry, spooled, len(spooled))], "20261201T000000Z-00000000")
    (target,) = converted["targets"].to_pylist()
    assert target["status"] in ("ok", "bad_output")
    for name, table in converted.items():
        assert table.schema.equals(schema.tables()[name].arrow)
        assert target["status"] == "ok" or name in ("targets", "attempts") or not len(table)


def frame_seeds() -> Iterator[bytes]:
    yield NESTED
    ok = outcomes.ok(mounts=1)
    driver = {column.name for column in schema.tables()["targets"].columns if column.driver}
    row = {name: value for name, value in ok["row"].items() if name not in driver and value is not None}
    lines: list[dict[str, Any]] = [{"table": "targets", "columns": list(row), "rows": [list(row.values())]}]
    lines += [{"table": name, **table} for name, table in ok["tables"].items()]
    counts = {line["table"]: len(line["rows"]) for line in lines}
    for last in ([{"end": counts}], [{"unsupported": "no memcg"}, {"end": counts}]):
        yield "".join(json.dumps(line) + "\n" for line in [*lines, *last]).encode()
    yield json.dumps({"error": {"status": "denied", "error_type": "E", "error": "x"}}).encode() + b"\n"


def parse_manifest(data: bytes) -> None:
    """Read the manifest of a run, and take its fields as readers do."""
    directory = scratch() / MANIFEST_RUN
    directory.mkdir(exist_ok=True)
    (directory / "manifest.json").write_bytes(data)
    manifest = runs._load_manifest(local_folder(directory))
    assert manifest.run_id == MANIFEST_RUN
    assert all(isinstance(file.path, str) for file in manifest.files)


def parse_staged(data: bytes) -> None:
    """Read run.json and inputs.jsonl.gz of a run in staging."""
    directory = scratch() / "staged"
    directory.mkdir(exist_ok=True)
    (directory / "run.json").write_bytes(data)
    for content in (data, gzip.compress(data, 1)):
        (directory / "inputs.jsonl.gz").write_bytes(content)
        for read in (runs.read_inputs, runs.read_options):
            with contextlib.suppress(WarehouseError):
                read(local_folder(directory))
    runs.read_run_file(directory)


def manifest_seeds() -> Iterator[bytes]:
    yield NESTED
    for path in sorted(RUNS.glob("v*/runs/*/manifest.json")):
        yield path.read_bytes().replace(path.parent.name.encode(), MANIFEST_RUN.encode())


def staged_seeds() -> Iterator[bytes]:
    yield NESTED
    yield json.dumps(outcomes.run("20261201T000000Z-00000000")).encode()
    for path in sorted(RUNS.glob("v*/runs/*/inputs.jsonl.gz")):
        yield path.read_bytes()
        yield gzip.decompress(path.read_bytes())


def parse_stderr(data: bytes) -> None:
    """Explain what ssh, sudo and a host print."""
    text = data.decode(errors="backslashreplace")
    package = {"python": "3.12", "loader": "/lib64/ld.so", "disk_bytes": 1 << 26}
    words = (text.splitlines() or [""])[0].split(" ", 1)
    reasons = [failures.of_ssh(text, proxy, through, 20) for proxy in (None, "jump") for through in (True, False)]
    reasons.append(failures.of_package(package, words[0], words[-1], text))
    reasons += [
        failures.of_sudo(code, text, "root", python, "python3", None) for code in (1, 139) for python in (None, "a b")
    ]
    failures.is_lost(text)
    for reason in reasons:
        assert child.error_line(str(reason)).isprintable()
    if (words_of_host := drgn_wheels.asking_host(data)) is not None:
        drgn_wheels.load(str(scratch()), *words_of_host)


def stderr_seeds() -> Iterator[bytes]:
    yield b"root@db1: Permission denied (publickey).\n"
    yield b"kex_exchange_identification: Connection closed by remote host\nConnection closed by 10.0.0.1 port 22\n"
    yield b"channel 0: open failed: connect failed: Connection timed out\nstdio forwarding failed\n"
    yield b"sudo: a password is required\n"
    yield b"tool gzip\n"
    yield b"arch riscv64\n@@@@ REMOTE HOST IDENTIFICATION HAS CHANGED! @@@@\n"
    yield b"\nlist-lru-audit host 3.11 .cpython-311-x86_64-linux-gnu.so x86_64 glibc 2.31\n"


def parse_wheel(data: bytes) -> None:
    """Read a wheel of drgn as it is sent to a host, and an ELF file of --ship-python."""
    directory = scratch() / "wheels"
    directory.mkdir(exist_ok=True)
    file_with(data, f"wheels/{WHEEL}")
    with contextlib.suppress(standalone.StandaloneError):
        standalone._build("python/", "3.12", data)
    drgn_wheels.load(str(directory), "3.11", ".cpython-311-x86_64-linux-gnu.so", "x86_64", "glibc 2.31")


def wheel_seeds() -> Iterator[bytes]:
    for compression in (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED):
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", compression) as wheel:
            wheel.writestr("drgn/__init__.py", "x = 1\n" * 20)
            wheel.writestr("_drgn.so", b"\x7fELF")
        yield content.getvalue()
    with open("/proc/self/exe", "rb") as file:
        yield file.read(1024)


MANIFEST_RUN = "20261130T123001Z-0f21a3c0"
WHEEL = "drgn-0.1.0-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl"
STATUSES = [status.encode() for status in frame.FAILURES]
TABLES = [f'"{table}"'.encode() for table in frame.TABLES]
TARGETS = {
    "frame": Target(
        parse_frame,
        (frame.FrameError,),
        frame_seeds,
        [*STATUSES, *TABLES, b"18446744073709551615", b"\\ud800", b"NaN", b"1e400", b"[[[["],
        16384,
        weight=0.3,
    ),
    "manifest": Target(
        parse_manifest, (WarehouseError,), manifest_seeds, [b'"files"', b"null", b"[[[[", b"{}"], weight=4
    ),
    "staged": Target(parse_staged, (WarehouseError,), staged_seeds, [b"{}", b"\n", b"\x1f\x8b"], weight=0.3),
    "stderr": Target(
        parse_stderr, (failures.SessionError,), stderr_seeds, [b"list-lru-audit host ", b"open failed: "], weight=0.7
    ),
    "wheel": Target(
        parse_wheel, (failures.SessionError,), wheel_seeds, [b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06"], weight=0.7
    ),
}
