"""500 hosts over ssh, a fifth of them faulty in twenty ways: each ends with its status, and nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import cli
from tests import processes
from tests.cli.test_resume import Warehouse
from tests.fanout.ssh_fleet import FAULTS, GOOD, End, Fleet
from tests.fanout.transports.sshd import SSHD
from tests.fanout.transports.test_ssh import as_root, wait_until
from tests.fanout.transports.wire import ADDRESSES, wire

pytestmark = [pytest.mark.faults, pytest.mark.skipif(SSHD is None, reason="needs sshd")]

# Bounds the memory that 400 more hosts add to the driver: their rows in Arrow and DuckDB while it publishes them. A
# driver that keeps the outcomes, or what the endless ones print, needs more.
MAX_GROWTH_BYTES = 128 << 20
MAX_S = 900  # three minutes on two idle cores


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A directory for temporary files, which must be empty afterwards. Ray's sockets need a short path."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as temporary:
        yield Path(temporary)
        assert os.listdir(temporary) == []


@pytest.fixture
def warehouse(tmp_path: Path, temporary: Path) -> Iterator[Warehouse]:
    """A warehouse whose commands leave no process."""
    mark = f"TMPDIR={temporary}"
    try:
        yield Warehouse(tmp_path / "w", temporary)
        processes.wait_for_exit(mark, 20)
    finally:
        processes.kill(mark)


def ends(warehouse: Warehouse) -> dict[str, End]:
    """Return the end of each host, and assert that the newest run is whole."""
    assert list(warehouse.path.glob("staging/*")) == []
    assert warehouse.run("verify")[0] == cli.OK
    newest = warehouse.run_ids()[-1]
    rows = warehouse.rows(f"SELECT target, status, error_type, attempts FROM targets WHERE run_id = '{newest}'")
    (attempts,) = warehouse.rows(f"SELECT count(*) AS count FROM attempts WHERE run_id = '{newest}'")
    assert attempts["count"] == sum(row["attempts"] for row in rows)
    assert len({row["target"] for row in rows}) == len(rows)
    return {row["target"]: (row["status"], row["error_type"], row["attempts"]) for row in rows}


def test_each_of_500_hosts_ends_with_its_status_and_leaves_nothing(tmp_path: Path, warehouse: Warehouse) -> None:
    peaks_bytes = []
    (tmp_path / "hosts").mkdir()
    with Fleet(tmp_path / "hosts") as fleet:
        for per_fault in (1, 5):
            expected, start = fleet.expected(per_fault), time.monotonic()
            process = warehouse.start(*fleet.command(expected))
            peaks_bytes.append(watch(process))
            _, stderr = process.communicate()
            print(
                f"{len(expected)} hosts: {time.monotonic() - start:.1f} s, driver's peak {peaks_bytes[-1] >> 20} MiB, "
                f"connections {fleet.connection_count()}, of which MaxStartups dropped {fleet.dropped_count()}"
            )
            assert process.returncode == cli.SOME_NOT_GOOD, stderr
            assert "Traceback" not in stderr
            assert ends(warehouse) == expected
            fleet.wait_until_idle()
    assert peaks_bytes[1] - peaks_bytes[0] < MAX_GROWTH_BYTES


def watch(process: subprocess.Popen[str]) -> int:
    """Wait for the end of a process and return its peak memory in bytes."""
    peak_kib, deadline = 0, time.monotonic() + MAX_S
    while process.poll() is None:
        assert time.monotonic() < deadline
        with contextlib.suppress(OSError, IndexError):  # it has ended
            status = Path(f"/proc/{process.pid}/status").read_text()
            peak_kib = int(status.partition("VmHWM:")[2].split()[0])
        time.sleep(0.02)
    return peak_kib << 10


@as_root
@pytest.mark.skipif(shutil.which("ip") is None, reason="needs iproute2")
def test_a_slow_link_costs_no_row_and_a_cut_one_only_what_was_on_its_way(tmp_path: Path, warehouse: Warehouse) -> None:
    """A round trip of 200 ms, and a twentieth of all packets lost; then every packet is lost."""
    (tmp_path / "hosts").mkdir()
    with wire() as link, Fleet(tmp_path / "hosts", ADDRESSES[1], prefix=link.prefixes[1]) as fleet:
        hosts = {**{f"good-{number}": GOOD for number in range(8)}, "hangs-0": FAULTS["hangs"]}
        hosts |= dict.fromkeys(["waits-0", "waits-1", "waits-2"], ("lost", "ConnectionLost", 1))
        process = warehouse.start(*fleet.command(hosts), "--retries", "0", prefix=link.prefixes[0])
        wait_until(lambda: len(warehouse.spool()) == 8 + 1, MAX_S)
        assert len(processes.find(fleet.host_mark)) > 0
        link.cut()
        _, stderr = process.communicate(timeout=MAX_S)
        assert process.returncode == cli.SOME_NOT_GOOD, stderr
        assert ends(warehouse) == hosts
        fleet.wait_for_collectors(180)  # which 90 s of silence end; sshd's sessions last as long as TCP's retries
