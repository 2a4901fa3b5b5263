"""What keeps dying memcgs, as a guest made it: files of each kind, and memory of a process that went elsewhere."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from pipeline.collector import snapshot
from pipeline.collector.access import kernel
from tests.lab import initramfs, kernels, scripted
from tests.lab.shapes import SHAPES

pytestmark = pytest.mark.lab

# charge MEMCG COMMAND...: run a command in a memcg below /svc, which is then removed; it is dying if pages keep it.
# is KIND STATE FILE PAGES MEMCGS PATH: print what the audit should say of a file.
# memfd_create is x86_64's system call 319.
SCRIPT = r"""
mount -t cgroup2 cgroup2 $cgroups
echo +memory > $cgroups/cgroup.subtree_control
mkdir $cgroups/svc
echo +memory > $cgroups/svc/cgroup.subtree_control
charge() {
    memcg=$cgroups/svc/$1; shift
    mkdir -p $memcg
    (echo 0 > $memcg/cgroup.procs; "$@") 2> /dev/null
    rmdir $memcg
}
is() { echo "$1 $2 $(stat -c %i "$3") $4 $5 $6"; }
make_dir() { mkdir -p $1; shift; "$@"; }
dying() { sed -n 's/^nr_dying_descendants //p' $cgroups/cgroup.stat; }
pages() { dd if=/dev/zero bs=4k count=$1 of=$2 conv=notrunc; }

make_dir /m/ext4 mount -o loop /disk.img /m/ext4
mkdir /m/ext4/dir
pages 200 /m/ext4/read 2> /dev/null
charge dropped pages 40 /m/ext4/dropped
sleep 3
echo dying_before_the_drop $(dying)
sync; echo 3 > /proc/sys/vm/drop_caches
for i in $(seq 30); do [ $(dying) -gt 0 ] || break; sleep 1; done
echo dying_after_the_drop $(dying)
charge first dd if=/m/ext4/read of=/dev/null bs=4k count=200
is file linked /m/ext4/read 200 1 /m/ext4/read
charge written pages 300 /m/ext4/dir/written
is file linked /m/ext4/dir/written 300 1 /m/ext4/dir/written
name=$(printf '/m/ext4/\377')
charge one pages 7 "$name"
charge two sh -c "dd if=/dev/zero bs=4k count=5 seek=7 of=$name conv=notrunc"
is file linked "$name" 12 2 '/m/ext4/\xff'

> /m/ext4/deleted
exec 8< /m/ext4/deleted
charge deleted pages 20 /m/ext4/deleted
is file deleted /m/ext4/deleted 20 1 /m/ext4/deleted
rm /m/ext4/deleted

make_dir /m/huge mount -t tmpfs -o huge=always huge /m/huge
charge huge dd if=/dev/zero of=/m/huge/file bs=2M count=2
is shmem linked /m/huge/file 1024 1 /m/huge/file

make_dir /m/detached mount -t tmpfs detached /m/detached
charge detached pages 30 /m/detached/file
is shmem linked /m/detached/file 30 1 /file
exec 7< /m/detached/file
umount -l /m/detached

make_dir /m/tree mount -t tmpfs tree /m/tree
mkdir /m/tree/shown /m/tree/hidden /m/shown
charge shown pages 11 /m/tree/shown/file
charge hidden pages 9 /m/tree/hidden/file
is shmem linked /m/tree/shown/file 11 1 /m/shown/file
is shmem linked /m/tree/hidden/file 9 1 None
mount --bind /m/tree/shown /m/shown
umount -l /m/tree

mkdir $cgroups/svc/emigrant
(echo 0 > $cgroups/svc/emigrant/cgroup.procs; exec perl -e '$x = "a" x (4 << 20);
    $name = "secret"; open(M, "+<&=", syscall(319, $name, 0)) or die; syswrite(M, $x, 5 * 4096);
    print "shmem deleted ", (stat M)[1], " 5 1 /memfd:secret\n"; close STDOUT;
    open(F, ">", "/sys/fs/cgroup/cgroup.procs"); syswrite(F, "0"); close F;
    open(F, ">", "/m/moved"); sleep 1000000') &
until [ -e /m/moved ]; do sleep 0.1; done
rmdir $cgroups/svc/emigrant

sync
cat /proc/sys/vm/stat_refresh > /dev/null
sleep 3
cat $cgroups/svc/cgroup.stat $cgroups/svc/memory.stat
"""


class Guest(NamedTuple):
    """What the guest said of each file and of the dying memcgs' parent, and the rows of its core."""

    files: set[tuple[str, bool, int, int, int, str]]
    """Kind, whether it is deleted, inode number, pages, memcgs, and path."""
    counters: dict[str, int]
    tables: dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module", params=["5.10", "6.12"])
def guest(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Guest:
    shape = SHAPES[{"5.10": "deb510-n2", "6.12": "deb612-n4"}[request.param]]
    folder = tmp_path_factory.mktemp("dying")
    image = folder / "disk.img"
    initramfs.mke2fs(image, "8M", "-O", "^has_journal")
    core, printed = scripted.take_core(
        shape, kernels.debian_kernel(request.param), folder / "core", SCRIPT, files=[image], programs=["perl"]
    )
    lines = [line.split(" ") for line in printed.splitlines()]
    files = {
        (kind, state == "deleted", int(inode), int(pages), int(memcgs), path)
        for kind, state, inode, pages, memcgs, path in (line for line in lines if len(line) > 2)
    }
    counters = {line[0]: int(line[1]) for line in lines if len(line) == 2}
    tables = {
        table.name: [dict(zip(table.columns, row, strict=True)) for row in table.rows]
        for table in snapshot.take(kernel.open_kernel(str(core))).tables
    }
    return Guest(files, counters, tables)


def test_each_file_has_its_pages_its_memcgs_and_its_path(guest: Guest) -> None:
    devices = {sb["address"] for sb in guest.tables["superblocks"] if sb["fstype"] == "bdev"}
    rows = {
        (row["kind"], row["deleted"], row["inode"], row["pages"], row["memcgs"], str(row["path"]))
        for row in guest.tables["dying_memcg_pages"]
        # ext4 reads and writes its metadata as page cache of its block device, in the memcg that happens to need it.
        if row["files"] and row["superblock"] not in devices
    }
    assert rows == guest.files
    assert len(rows) == 9


def test_all_dying_memcgs_are_below_the_cgroup_that_they_were_in(guest: Guest) -> None:
    parent = next(row["css_id"] for row in guest.tables["memcgs"] if row["path"] == "/svc")
    assert {row["parent"] for row in guest.tables["dying_memcg_pages"]} == {parent}
    assert guest.tables["targets"][0]["dying_memcgs"] == guest.counters["nr_dying_descendants"] == 10


def test_a_memcg_goes_when_the_page_cache_is_written_back_and_dropped(guest: Guest) -> None:
    assert (guest.counters["dying_before_the_drop"], guest.counters["dying_after_the_drop"]) == (1, 0)


def test_the_pages_add_up_to_what_the_parents_memory_stat_has(guest: Guest) -> None:
    """memory.stat of /svc is of its dying children only. 5.10 leaves up to 32 pages of each out, on each CPU."""
    is_exact = guest.tables["targets"][0]["kernel_release"].startswith("6.12")
    missing = 0 if is_exact else 32 * 2 * 10 * 4096
    sums: dict[str, int] = {}
    for row in guest.tables["dying_memcg_pages"]:
        kind = {"file": "file", "shmem": "file"}.get(row["kind"], row["kind"])
        sums[kind] = sums.get(kind, 0) + row["bytes"]
    assert guest.counters["file"] <= sums["file"] <= guest.counters["file"] + missing
    assert guest.counters["anon"] <= sums["anonymous"] <= guest.counters["anon"] + missing
    part = next(row for row in guest.tables["memcg_memory"] if row["part"] == "dying_page_cache")
    assert part["held_bytes"] == part["dying_bytes"] == sums["file"]
