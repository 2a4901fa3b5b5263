"""The units as systemd itself reads them."""

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
    """A unit's settings; of one that is given several times, the last."""

    def __init__(self, name: str) -> None:
        super().__init__(strict=False, delimiters="=", comment_prefixes="#")
        self.optionxform = str
        self.read_string((UNITS / name).read_text().replace("\\\n", ""))


@pytest.fixture
def installed(tmp_path: Path) -> list[Path]:
    """The units, with a Python that is there."""
    copies = []
    for unit in sorted(UNITS.iterdir()):
        copies.append(tmp_path / unit.name)
        text = unit.read_text()
        copies[-1].write_text(text.replace("/opt/lru-audit/bin/python", sys.executable))
    return copies


@needs_systemd
def test_systemd_finds_nothing_wrong(installed: list[Path]) -> None:
    verify = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *installed]
    done = subprocess.run(verify, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_systemd
def test_systemd_would_find_a_mistake(installed: list[Path]) -> None:
    (service,) = (unit for unit in installed if unit.suffix == ".service")
    service.write_text(service.read_text().replace("ProtectSystem=", "ProtectSystems="))
    done = subprocess.run(["systemd-analyze", "verify", service], capture_output=True, text=True, check=False)
    assert "ProtectSystems" in done.stderr


def test_a_run_with_bad_targets_is_a_success_and_no_other_code_is() -> None:
    assert Unit("lru-audit.service")["Service"]["SuccessExitStatus"] == "3"


def test_nothing_takes_away_what_reading_a_live_kernel_needs() -> None:
    """systemd.exec(5): these hide /proc/kcore or drop CAP_SYS_RAWIO, which fs/proc/kcore.c:open_kcore() wants."""
    service = Unit("lru-audit.service")["Service"]
    assert "CAP_SYS_RAWIO" in service["CapabilityBoundingSet"].split()
    for taken in ("ProtectKernelTunables", "PrivateDevices", "ProcSubset", "PrivateUsers", "DynamicUser"):
        assert service.get(taken, "no") == "no"
    # root's ssh keys and known hosts
    assert service["ProtectHome"] == "read-only"


def test_what_is_written_is_writable() -> None:
    """ProtectSystem=strict leaves nothing but the directories that are named."""
    unit = (UNITS / "lru-audit.service").read_text().replace("\\\n", "")
    service = Unit("lru-audit.service")["Service"]
    assert service["ProtectSystem"] == "strict"
    assert service["Environment"] == f"LRU_AUDIT_WAREHOUSE=%S/{service['StateDirectory']}/warehouse"
    written = [line.rpartition(" -o ")[2] for line in unit.splitlines() if " -o " in line]
    writable = [service["ReadWritePaths"].removeprefix("-"), f"%S/{service['StateDirectory']}"]
    assert len(written) == 2
    assert {str(Path(path).parent) for path in written} == set(writable)


@needs_systemd
def test_the_timer_starts_it_every_night() -> None:
    timer = Unit("lru-audit.timer")["Timer"]
    calendar = ["systemd-analyze", "calendar", "--iterations=3", "--base-time=2026-01-01 00:00:00", timer["OnCalendar"]]
    said = subprocess.run(calendar, capture_output=True, text=True, check=True, env={"LC_ALL": "C", "TZ": "UTC"}).stdout
    assert [f"2026-01-0{day} 02:17:00" in said for day in (1, 2, 3, 4)] == [True, True, True, False]
    assert Path(UNITS / "lru-audit.timer").with_suffix(".service").exists()
