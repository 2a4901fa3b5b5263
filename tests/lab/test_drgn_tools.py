"""The walk over the lists, compared with Oracle's independent drgn-tools on freshly booted kernels.

$DRGN_TOOLS is the path of a checkout of drgn-tools; this repository has no part of it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.collector.access.kernel import open_kernel
from pipeline.collector.walk import layouts, list_lrus, memcgs, superblocks
from tests.lab import kernels
from tests.lab.boot import take_core
from tests.lab.shapes import SHAPES

pytestmark = pytest.mark.lab

DRGN_TOOLS = os.environ.get("DRGN_TOOLS")

# Runs in another process, because a checkout of drgn-tools also has a package `tests`.
WALK = """
import json, sys
from collections import Counter
from drgn import Program
from drgn.helpers.linux.list import list_for_each_entry
from drgn_tools.list_lru import list_lru_for_each_entry, list_lru_for_each_list

core, vmlinux = sys.argv[1:]
prog = Program()
prog.set_core_dump(core)
prog.load_debug_info([vmlinux])
lists_and_items = {}
for sb in list_for_each_entry("struct super_block", prog["super_blocks"].address_of_(), "s_list"):
    for lru, entry, member in ((sb.s_dentry_lru, "dentry", "d_lru"), (sb.s_inode_lru, "inode", "i_lru")):
        lru = lru.address_of_()
        lists = sum(1 for _ in list_lru_for_each_list(lru))
        entries = list_lru_for_each_entry(f"struct {entry}", lru, member)
        lists_and_items[lru.value_()] = lists, Counter(memcg for _, memcg, _ in entries)
json.dump(lists_and_items, sys.stdout)
"""


@pytest.mark.skipif(DRGN_TOOLS is None, reason="needs $DRGN_TOOLS")
@pytest.mark.parametrize("name", ["deb510-n2", "deb61-n2", "deb7-n2"])
def test_every_list_of_a_memcg_has_what_drgn_tools_walks_over(tmp_path: Path, name: str) -> None:
    shape = SHAPES[name]
    kernel = kernels.debian_kernel(shape.series, dwarf=True)
    take_core(shape, kernel, tmp_path)
    core = tmp_path / "vmcore"
    assert kernel.vmlinux
    command: list[str | Path] = [sys.executable, "-c", WALK, core, kernel.vmlinux]
    environment = {**os.environ, "PYTHONPATH": str(DRGN_TOOLS)}
    output = json.loads(subprocess.run(command, env=environment, check=True, capture_output=True).stdout)
    theirs: dict[int, Any] = {int(address): value for address, value in output.items()}

    prog = open_kernel(str(core)).prog
    layout = layouts.detect(prog)
    findings = list_lrus.walk(prog, layout, superblocks.walk(prog), memcgs.walk(prog))
    ours = {lru.address: lru for lru in findings.list_lrus if lru.owner == "superblock"}

    assert ours.keys() == theirs.keys()
    lrus_with_items = 0
    for address, lru in ours.items():
        lists, items = theirs[address]
        # An object of a lazy kernel has a list for every node. drgn-tools omits the root's lists.
        assert lru.list_lru_one_objects * (1 if layout in layouts.EAGER else shape.nodes) == lists
        assert lru.items_by_id == {int(memcg): count for memcg, count in items.items()}
        lrus_with_items += bool(items)
    assert lrus_with_items > 0
