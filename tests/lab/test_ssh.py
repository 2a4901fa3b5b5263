"""Live audits over ssh of guests without debug info and drgn agree with QEMU's monitor, the cores and the guests.

5.10 has bullseye's userland, whose Python 3.9 is the oldest one that audits a real host in these tests.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pipeline.fanout import runner
from pipeline.inventory import Target
from pipeline.query import landlock
from tests import campaign
from tests.fanout.transports.pythons import archive
from tests.lab import kernels, reachable
from tests.lab.test_live import CHANGING_COLUMNS, rows
from tests.query import reach

__all__ = ["archive"]
pytestmark = pytest.mark.lab

LOGIN_COLUMNS = ("items", "root_items", "memcg_items")
"""Columns of list_lrus that a login changes: it opens files, whose dentries and inodes get on LRUs of disk and proc."""
PYTHONS = {"5.10": "3.9", "6.1": "3.11", "7": "3.11"}
"""Python version of each guest, by the guest's kernel."""
GUEST_COMMANDS = ("python3 -V", "cat /proc/slabinfo", "cat /proc/self/mountinfo", "cat /sys/fs/cgroup/cgroup.stat")
"""Commands to run in each guest, for comparison with its audits."""
LANDLOCK_ABIS = {"5.10": 0, "6.1": 2, "7": 10}
"""Version of Landlock's ABI by kernel: 2 since v5.19, 3 since v6.2, 10 since v7.2."""
REACH = shlex.join(("python3", "-c", *(Path(module.__file__).read_text() for module in (reach, landlock))))
KMALLOC = "kmalloc-32"
LIMITS = runner.Limits(timeout_s=300)


class AuditedGuest(NamedTuple):
    """A guest's audits by the way into it, and the outputs of GUEST_COMMANDS and REACH by command."""

    series: str
    audits: dict[str, dict[str, Any]]
    outputs: dict[str, str]


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheels of drgn for each guest's Python: the newest, and in floor/ only the oldest supported one."""
    folder, pythons = tmp_path_factory.mktemp("wheels"), set(PYTHONS.values())
    fetch = [sys.executable, "-m", "pipeline", "fetch-drgn", "--python", *pythons, "--arch", "x86_64"]
    subprocess.run([*fetch, "--drgn-wheels", folder], check=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "drgn==0.0.31"]
    for python in pythons:
        subprocess.run([*pip, f"--python-version={python}", "--dest", folder / "floor"], check=True)
    return folder


@pytest.fixture(scope="module", params=campaign.sample(list(PYTHONS), 2))
def audited_guest(
    request: pytest.FixtureRequest, wheels: Path, archive: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AuditedGuest]:
    """Audit an idle guest by each way into it, then without its Python, and then its core."""
    shape, core = reachable.ssh_server(request.param), tmp_path_factory.mktemp("core") / "vmcore"
    with reachable.running_guest(shape, kernels.debian_kernel(request.param), kernels.CACHE) as guest:
        jump_config = guest.work / "jumping"
        jump_config.write_text(
            f"Host inside\nHostName 127.0.0.1\nHostKeyAlias [127.0.0.1]:{guest.port}\n"
            f"ProxyCommand ssh -F {guest.client.config} -p {guest.port} -W %h:%p admin@127.0.0.1\n"
            f"{guest.client.config.read_text()}"
        )
        config, folder = str(guest.client.config), str(wheels)
        source = f"ssh:root@127.0.0.1:{guest.port}"
        root = Target("root", "ssh", source, ssh_config=config, drgn_wheels=folder, charged=False)
        admin = replace(root, name="admin", source=f"ssh:admin@127.0.0.1:{guest.port}")
        targets = [
            replace(root, name="first", charged=None),  # the first lookups add to the LRUs: it is not compared
            admin,
            replace(admin, name="bare", drgn_wheels=None),
            replace(root, name="floor", drgn_wheels=f"{folder}/floor"),
            replace(root, name="jump", source="ssh:root@inside:22", ssh_config=str(jump_config)),
            replace(admin, name="sudo", become=True),
            root,
            Target("qmp", "qmp", str(guest.work / "audit")),
        ]
        outputs = {command: guest.run(command) for command in (*GUEST_COMMANDS, REACH)}
        audits = {target.name: runner.run(target, 1, LIMITS) for target in targets}
        guest.run("rm /usr/bin/python3*; echo 'admin ALL=(root) NOPASSWD: ALL' > /etc/sudoers.d/admin")
        shipped = replace(root, name="shipped", ship_python=str(archive))
        for target in (
            replace(root, name="without"),
            shipped,
            replace(shipped, name="shipped through sudo", source=admin.source, become=True),
        ):
            audits[target.name] = runner.run(target, 1, LIMITS)
        outputs["leftovers"] = guest.run("find /tmp /var/tmp /dev/shm /run /root /home -name 'lru-audit*'")
        guest.dump(core)
    audits["core"] = runner.run(Target("core", "vmcore", str(core), charged=False), 1, LIMITS)
    yield AuditedGuest(request.param, audits, outputs)
    core.unlink()


@pytest.mark.parametrize("way", ["root", "sudo", "jump", "floor", "qmp", "shipped", "shipped through sudo"])
def test_live_and_core_agree_row_for_row(audited_guest: AuditedGuest, way: str) -> None:
    live, core = audited_guest.audits[way], audited_guest.audits["core"]
    if way == "floor" and audited_guest.series == "7":
        # drgn 0.0.31 is older than this kernel. The Pythons without a newer drgn are older, too.
        assert live["attempt"]["status"] == "no_types"
        return
    if way.startswith("shipped") and audited_guest.series == "5.10":
        # This machine's Python needs a newer C library than bullseye's.
        assert (live["attempt"]["status"], live["attempt"]["error_type"]) == ("no_drgn", "NotStarted")
        assert "version `GLIBC_2." in live["attempt"]["error"]
        return
    assert (live["attempt"]["status"], live["attempt"]["error"]) == ("ok", None)
    assert live["columns"]["types_source"] == "btf"
    assert {**live["columns"], **dict.fromkeys(CHANGING_COLUMNS)} == {
        **core["columns"],
        **dict.fromkeys(CHANGING_COLUMNS),
    }
    assert live["tables"]["superblocks"] == core["tables"]["superblocks"]
    assert stable_rows(live["tables"]["list_lrus"]) == stable_rows(core["tables"]["list_lrus"])
    assert stable_rows(live["tables"]["memcgs"]) == stable_rows(core["tables"]["memcgs"])


def test_a_running_host_has_the_expected_figure_by_default(audited_guest: AuditedGuest) -> None:
    basis = "charged" if audited_guest.series == "5.10" else None  # a lazy kernel has no estimate
    assert audited_guest.audits["first"]["columns"]["lazy_basis"] == basis


def stable_rows(table: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**row, **dict.fromkeys(LOGIN_COLUMNS)} for row in rows(table)]


def test_an_audit_is_what_the_guest_says(audited_guest: AuditedGuest) -> None:
    outputs, live = audited_guest.outputs, audited_guest.audits["root"]
    assert outputs["python3 -V"].startswith(f"Python {PYTHONS[audited_guest.series]}.")
    assert outputs["cat /sys/fs/cgroup/cgroup.stat"].startswith(f"nr_descendants {live['columns']['online_memcgs']}\n")
    fstype_by_device = {}
    for line in outputs["cat /proc/self/mountinfo"].splitlines():
        fields = line.split()
        major, minor = map(int, fields[2].split(":"))
        fstype_by_device[major << 20 | minor] = fields[fields.index("-") + 1]
    visible = {row["s_dev"]: row["fstype"] for row in rows(live["tables"]["superblocks"]) if not row["kernel_internal"]}
    # The only others are the filesystems below the guest's root.
    assert {fstype for s_dev, fstype in visible.items() if s_dev not in fstype_by_device} <= {"rootfs", "nullfs"}
    assert fstype_by_device.items() <= visible.items()
    if audited_guest.series == "5.10":  # lazy kernels allocate lists only for memcgs at work, and here no memcg works
        active = dict(line.split()[:2] for line in outputs["cat /proc/slabinfo"].splitlines()[2:])[KMALLOC]
        assert live["columns"]["slab_cache"] == KMALLOC
        assert 0.8 * int(active) < live["columns"]["list_lru_one_in_cache"] <= int(active)


def test_a_user_without_sudo_is_denied_and_told_what_to_do(audited_guest: AuditedGuest) -> None:
    attempt = audited_guest.audits["admin"]["attempt"]
    assert attempt["status"] == "denied"
    assert "/proc/kcore: run as root" in attempt["error"]
    assert "become" in attempt["error"]


def test_a_host_without_drgn_says_so(audited_guest: AuditedGuest) -> None:
    attempt = audited_guest.audits["bare"]["attempt"]
    assert attempt["status"] == "no_drgn"
    assert "drgn" in attempt["error"]


def test_a_guest_without_python_keeps_nothing_of_what_was_sent(audited_guest: AuditedGuest) -> None:
    assert audited_guest.audits["without"]["attempt"]["error_type"] == "NoInterpreter"
    assert audited_guest.outputs["leftovers"] == ""


@pytest.mark.parametrize("way", ["root", "sudo"])
def test_a_live_audit_stays_within_its_memory(audited_guest: AuditedGuest, way: str) -> None:
    assert audited_guest.audits[way]["columns"]["peak_rss_bytes"] < 150e6


def test_a_query_on_this_kernel_reaches_no_socket(audited_guest: AuditedGuest) -> None:
    answers = json.loads(audited_guest.outputs[REACH])
    assert answers.pop("abi") == LANDLOCK_ABIS[audited_guest.series]
    assert answers == reach.expected(LANDLOCK_ABIS[audited_guest.series])
