"""Kernels audited live over ssh, in guests without debug info and drgn: what QEMU, their cores and the guests say, too.

5.10 has bullseye's userland: its Python 3.9 is the oldest one that audits a real host here.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pipeline.fanout import runner
from pipeline.inventory import Target
from tests.lab import kernels, reachable
from tests.lab.test_live import CHANGING, rows

pytestmark = pytest.mark.lab

CHANGED_BY_LOGINS = ("items", "root_items", "memcg_items")
"""A login opens files, whose dentries and inodes go on LRUs of the guest's disk and of proc."""
PYTHONS = {"5.10": "3.9", "6.1": "3.11", "7": "3.11"}
"""Of the guests, by their kernel."""
SAID = ("python3 -V", "cat /proc/slabinfo", "cat /proc/self/mountinfo", "cat /sys/fs/cgroup/cgroup.stat")
"""What a guest is asked of itself."""
KMALLOC = "kmalloc-32"
LIMITS = runner.Limits(timeout_s=300)


class Audited(NamedTuple):
    """One guest, by each way into it; `said`, by each command of SAID."""

    series: str
    audits: dict[str, dict[str, Any]]
    said: dict[str, str]


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """drgn for each guest's Python: the newest, and by itself in floor/ the oldest that will do."""
    folder, pythons = tmp_path_factory.mktemp("wheels"), set(PYTHONS.values())
    fetch = [sys.executable, "-m", "pipeline", "fetch-drgn", "--python", *pythons, "--arch", "x86_64"]
    subprocess.run([*fetch, "--drgn-wheels", folder], check=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "drgn==0.0.31"]
    for python in pythons:
        subprocess.run([*pip, f"--python-version={python}", "--dest", folder / "floor"], check=True)
    return folder


@pytest.fixture(scope="module", params=PYTHONS)
def audited(
    request: pytest.FixtureRequest, wheels: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Audited]:
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
            Target("qmp", "qmp", str(guest.work / "audit")),
        ]
        said = {command: guest.say(command) for command in SAID}
        made = {target.name: runner.run(target, 1, LIMITS) for target in targets}
        guest.dump(core)
    made["core"] = runner.run(Target("core", "vmcore", str(core), charged=False), 1, LIMITS)
    yield Audited(request.param, made, said)
    core.unlink()


@pytest.mark.parametrize("way", ["root", "sudo", "jump", "floor", "qmp"])
def test_live_and_core_agree_row_for_row(audited: Audited, way: str) -> None:
    live, core = audited.audits[way], audited.audits["core"]
    if way == "floor" and audited.series == "7":
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


def test_an_audit_is_what_the_guest_says(audited: Audited) -> None:
    said, live = audited.said, audited.audits["root"]
    assert said["python3 -V"].startswith(f"Python {PYTHONS[audited.series]}.")
    assert said["cat /sys/fs/cgroup/cgroup.stat"].startswith(f"nr_descendants {live['columns']['online_memcgs']}\n")
    mounted = {}
    for line in said["cat /proc/self/mountinfo"].splitlines():
        fields = line.split()
        major, minor = map(int, fields[2].split(":"))
        mounted[major << 20 | minor] = fields[fields.index("-") + 1]
    visible = {row["s_dev"]: row["fstype"] for row in rows(live["tables"]["superblocks"]) if not row["kernel_internal"]}
    # What the guest's root was mounted over.
    assert {fstype for s_dev, fstype in visible.items() if s_dev not in mounted} <= {"rootfs", "nullfs"}
    assert mounted.items() <= visible.items()
    if audited.series == "5.10":  # others make lists for memcgs at work, of which there is none
        active = dict(line.split()[:2] for line in said["cat /proc/slabinfo"].splitlines()[2:])[KMALLOC]
        assert live["columns"]["slab_cache"] == KMALLOC
        assert 0.8 * int(active) < live["columns"]["list_lru_one_in_cache"] <= int(active)


def test_a_user_without_sudo_is_denied_and_told_what_to_do(audited: Audited) -> None:
    attempt = audited.audits["admin"]["attempt"]
    assert attempt["status"] == "denied"
    assert "/proc/kcore: run as root" in attempt["error"]
    assert "become" in attempt["error"]


def test_a_host_without_drgn_says_so(audited: Audited) -> None:
    attempt = audited.audits["bare"]["attempt"]
    assert attempt["status"] == "no_drgn"
    assert "drgn" in attempt["error"]


@pytest.mark.parametrize("way", ["root", "sudo"])
def test_a_live_audit_stays_within_its_memory(audited: Audited, way: str) -> None:
    assert audited.audits[way]["columns"]["peak_rss_bytes"] < 150e6
