"""Kernels audited live over ssh, in guests without debug info and without drgn, and from their cores: the same rows."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import runner
from pipeline.inventory import Target
from tests.lab import kernels, reachable
from tests.lab.test_live import CHANGING, rows

pytestmark = pytest.mark.lab

CHANGED_BY_LOGINS = ("items", "root_items", "memcg_items")
"""A login opens files, whose dentries and inodes go on LRUs of the guest's disk and of proc."""
LIMITS = runner.Limits(timeout_s=300)
Audits = dict[str, dict[str, Any]]


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """drgn for the guests' Python 3.11: the newest, and by itself in floor/ the oldest that will do."""
    folder = tmp_path_factory.mktemp("wheels")
    fetch = [sys.executable, "-m", "pipeline", "fetch-drgn", "--python", "3.11", "--arch", "x86_64"]
    subprocess.run([*fetch, "--drgn-wheels", folder], check=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "drgn==0.0.31"]
    subprocess.run([*pip, "--python-version=3.11", "--dest", folder / "floor"], check=True)
    return folder


@pytest.fixture(scope="module", params=["5.10", "6.1", "7"])
def audits(request: pytest.FixtureRequest, wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Audits]:
    """What each way into a guest gave, while it did nothing else, and then its core."""
    shape, core = reachable.guest(request.param), tmp_path_factory.mktemp("core") / "vmcore"
    with reachable.running(shape, kernels.of(request.param), kernels.CACHE) as guest:
        jumping = guest.work / "jumping"
        jumping.write_text(
            f"Host inside\nHostName 127.0.0.1\nHostKeyAlias [127.0.0.1]:{guest.port}\n"
            f"ProxyCommand ssh -F {guest.client.config} -p {guest.port} -W %h:%p admin@127.0.0.1\n"
            f"{guest.client.config.read_text()}"
        )
        config, folder = str(guest.client.config), str(wheels)
        root = Target("root", "ssh", f"ssh:root@127.0.0.1:{guest.port}", ssh_config=config, drgn_wheels=folder)
        admin = replace(root, name="admin", source=f"ssh:admin@127.0.0.1:{guest.port}")
        targets = [
            replace(root, name="first"),  # what is looked up for the first time adds to the LRUs
            admin,
            replace(admin, name="bare", drgn_wheels=None),
            replace(root, name="floor", drgn_wheels=f"{folder}/floor"),
            replace(root, name="jump", source="ssh:root@inside:22", ssh_config=str(jumping)),
            replace(admin, name="sudo", become=True),
            root,
        ]
        made = {target.name: runner.run(target, 1, LIMITS) for target in targets}
        guest.dump(core)
    made["core"] = runner.run(Target("core", "vmcore", str(core), charged=False), 1, LIMITS)
    yield made
    core.unlink()


@pytest.mark.parametrize("way", ["root", "sudo", "jump", "floor"])
def test_live_and_core_agree_row_for_row(audits: Audits, way: str) -> None:
    live, core = audits[way], audits["core"]
    if way == "floor" and core["columns"]["kernel_release"].startswith("7."):
        # drgn 0.0.31 is older than this kernel; Pythons that have no newer drgn are older still.
        assert live["attempt"]["status"] == "no_types"
        return
    assert (live["attempt"]["status"], live["attempt"]["error"]) == ("ok", None)
    assert live["columns"]["types_source"] == "btf"
    assert {**live["columns"], **dict.fromkeys(CHANGING)} == {**core["columns"], **dict.fromkeys(CHANGING)}
    assert live["tables"]["superblocks"] == core["tables"]["superblocks"]
    assert unchanging(live["tables"]["list_lrus"]) == unchanging(core["tables"]["list_lrus"])
    assert unchanging(live["tables"]["memcgs"]) == unchanging(core["tables"]["memcgs"])


def unchanging(table: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**row, **dict.fromkeys(CHANGED_BY_LOGINS)} for row in rows(table)]


def test_a_user_without_sudo_is_denied_and_told_what_to_do(audits: Audits) -> None:
    attempt = audits["admin"]["attempt"]
    assert attempt["status"] == "denied"
    assert "/proc/kcore: run as root" in attempt["error"]
    assert "become" in attempt["error"]


def test_a_host_without_drgn_says_so(audits: Audits) -> None:
    attempt = audits["bare"]["attempt"]
    assert attempt["status"] == "no_drgn"
    assert "drgn" in attempt["error"]


@pytest.mark.parametrize("way", ["root", "sudo"])
def test_a_live_audit_stays_within_its_memory(audits: Audits, way: str) -> None:
    assert audits[way]["columns"]["peak_rss_bytes"] < 150e6
