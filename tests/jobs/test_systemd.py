"""The units, checked with systemd's own tools."""

from __future__ import annotations

import shutil
import subprocess
import sys
from configparser import RawConfigParser
from pathlib import Path

import pytest

UNITS = Path(__file__).resolve().parents[2] / "jobs" / "deploy" / "systemd"

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")


class Unit(RawConfigParser):
    """The settings of a unit; of a repeated setting the last."""

    def __init__(self, name: str) -> None:
        super().__init__(strict=False, delimiters="=", comment_prefixes="#")
        self.optionxform = str
        self.read_string((UNITS / name).read_text().replace("\\\n", ""))


@pytest.fixture
def unit_files(tmp_path: Path) -> list[Path]:
    """Copies of the units with the path of an existing Python."""
    copies = []
    for unit in sorted(UNITS.iterdir()):
        copies.append(tmp_path / unit.name)
        text = unit.read_text()
        copies[-1].write_text(text.replace("/opt/lru-audit/bin/python", sys.executable))
    return copies


@needs_systemd
def test_systemd_finds_nothing_wrong(unit_files: list[Path]) -> None:
    verify = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *unit_files]
    process = subprocess.run(verify, capture_output=True, text=True, check=False)
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")


@needs_systemd
def test_systemd_would_find_a_mistake(unit_files: list[Path]) -> None:
    (service,) = (unit for unit in unit_files if unit.suffix == ".service")
    service.write_text(service.read_text().replace("ProtectSystem=", "ProtectSystems="))
    process = subprocess.run(["systemd-analyze", "verify", service], capture_output=True, text=True, check=False)
    assert "ProtectSystems" in process.stderr


def test_a_run_with_bad_targets_is_a_success_and_no_other_code_is() -> None:
    assert Unit("lru-audit.service")["Service"]["SuccessExitStatus"] == "3"


def test_nothing_takes_away_what_reading_a_live_kernel_needs() -> None:
    """systemd.exec(5): these hide /proc/kcore or drop CAP_SYS_RAWIO, which fs/proc/kcore.c:open_kcore() requires."""
    service = Unit("lru-audit.service")["Service"]
    assert "CAP_SYS_RAWIO" in service["CapabilityBoundingSet"].split()
    for setting in ("ProtectKernelTunables", "PrivateDevices", "ProcSubset", "PrivateUsers", "DynamicUser"):
        assert service.get(setting, "no") == "no"
    # root's ssh keys and known hosts
    assert service["ProtectHome"] == "read-only"


def test_what_is_written_is_writable() -> None:
    """With ProtectSystem=strict only the named directories are writable."""
    unit = (UNITS / "lru-audit.service").read_text().replace("\\\n", "")
    service = Unit("lru-audit.service")["Service"]
    assert service["ProtectSystem"] == "strict"
    assert service["Environment"] == f"LRU_AUDIT_WAREHOUSE=%S/{service['StateDirectory']}/warehouse"
    output_paths = [line.rpartition(" -o ")[2] for line in unit.splitlines() if " -o " in line]
    writable_folders = [service["ReadWritePaths"].removeprefix("-"), f"%S/{service['StateDirectory']}"]
    assert len(output_paths) == 2
    assert {str(Path(path).parent) for path in output_paths} == set(writable_folders)


@needs_systemd
def test_the_timer_starts_it_every_night() -> None:
    timer = Unit("lru-audit.timer")["Timer"]
    calendar = ["systemd-analyze", "calendar", "--iterations=3", "--base-time=2026-01-01 00:00:00", timer["OnCalendar"]]
    output = subprocess.run(
        calendar, capture_output=True, text=True, check=True, env={"LC_ALL": "C", "TZ": "UTC"}
    ).stdout
    assert [f"2026-01-0{day} 02:17:00" in output for day in (1, 2, 3, 4)] == [True, True, True, False]
    assert Path(UNITS / "lru-audit.timer").with_suffix(".service").exists()
