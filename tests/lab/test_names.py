"""Names that a real kernel takes, whatever their bytes: an audit has each of them exactly, or marks what it cut.

A program in the guest makes mounts, cgroups, a FUSE filesystem and a host name with bytes that act on terminals,
spreadsheets and browsers, and says which of them the kernel took.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest

from pipeline.collector import snapshot
from pipeline.collector.access import kernel
from tests import campaign
from tests.lab import kernels, scripted
from tests.lab.shapes import SHAPES

pytestmark = pytest.mark.lab

NAMES = {
    b"\x1b]0;title\x07\x1b[2J",
    b"\x1b]8;;http:evil\x1b\\link\x1b]8;;\x1b\\",
    "\x9b31m\u202e\u2066\u200b\ufeff\u2028".encode(),
    b"\x9b31m",
    b"\xff\xfe\xed\xa0\x80",
    b"\\xff",
    b"=1+1|' 'C calc",
    b"'; DROP TABLE targets; --",
    b"<script>alert(1)<!--",
    b" | `pipe` [text](x)\t\r",
    b"a" + 60 * "\u0336".encode(),
    b"n" * 255,
}
LINES = b"two\nlines"
"""cgroup_mkdir() refuses it."""
LONG = b"m" * 1000
"""Longer than NAME_MAX, which only kernfs takes."""
FSTYPE = b"fuse.\x1b[31m" + 300 * b"s" + b"\xff"
HOST = b"\x1b]0;h\x07\xff\\xff=1"
PART = b"/" + 255 * b"d"
DEPTH = 20
"""Of directories with long names, one in the other: their path is longer than PATH_MAX."""

# x86_64's system calls: mount 165, sethostname 170. Each line is a kind and a name in hex.
SCRIPT = r"""
mkdir /m
mount -t cgroup2 cgroup2 /sys/fs/cgroup
echo +memory > /sys/fs/cgroup/cgroup.subtree_control
perl -e '
    sub made { print "$_[0] ", unpack("H*", $_[1]), "\n" }
    sub attach { my ($type, $path, $data) = @_; my $source = $path; !syscall 165, $source, $path, $type, 0, $data }
    my ($depth, @names) = @ARGV;
    my ($host, $fstype, @names) = map pack("H*", $_), @names;
    for my $name (@names) {
        made("mount", $name) if mkdir "/m/$name" and attach "tmpfs", "/m/$name", 0;
        made("cgroup", $name) if mkdir "/sys/fs/cgroup/$name";
    }
    mkdir "/m/fuse";
    open my $fuse, "+<", "/dev/fuse" or die;
    my $options = "fd=" . fileno($fuse) . ",rootmode=40000,user_id=0,group_id=0";
    made("fstype", $fstype) if attach $fstype, "/m/fuse", $options;
    made("host", $host) unless syscall 170, $host, length $host;
    my $part = "d" x 255;
    for my $top ("/sys/fs/cgroup", "/m") {
        chdir $top or die;
        for (1 .. $depth) {
            mkdir $part and chdir $part or die;
            if (open my $control, ">", "cgroup.subtree_control") { syswrite $control, "+memory" }
        }
    }
    made("deep", ".") if attach "tmpfs", ".", 0;
    sleep 1000000 unless fork;
' DEPTH NAMES
"""


class Guest(NamedTuple):
    """The names that the kernel took, by kind, and the rows of its core."""

    taken: Mapping[str, set[bytes]]
    tables: Mapping[str, list[dict[str, Any]]]

    def paths(self, table: str, column: str) -> set[bytes]:
        rows = (row for row in self.tables[table] if row[column] is not None)
        return {bytes.fromhex(row[f"{column}_raw"]) if row[f"{column}_raw"] else row[column].encode() for row in rows}


@pytest.fixture(scope="module", params=campaign.sample(["5.10", "7"], 1))
def guest(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Guest:
    shape = SHAPES["deb510-n1" if request.param == "5.10" else "deb7-n2"]
    names = " ".join(name.hex() for name in (HOST, FSTYPE, *sorted(NAMES), LINES, LONG))
    script = SCRIPT.replace("DEPTH", str(DEPTH)).replace("NAMES", names)
    folder = tmp_path_factory.mktemp("names")
    core, printed = scripted.take_core(
        shape, kernels.debian_kernel(request.param), folder, script, modules=["fuse"], programs=["perl"]
    )
    taken: dict[str, set[bytes]] = {}
    for line in printed.splitlines():
        kind, name = line.split()
        taken.setdefault(kind, set()).add(bytes.fromhex(name))
    tables = {
        table.name: [dict(zip(table.columns, row, strict=True)) for row in table.rows]
        for table in snapshot.take(kernel.open_kernel(str(core))).tables
    }
    return Guest(taken, tables)


def unescape(text: str) -> bytes:
    return text.encode().decode("unicode_escape").encode("latin-1")


def test_the_kernel_took_the_names(guest: Guest) -> None:
    assert guest.taken["mount"] == NAMES | {LINES}
    assert guest.taken["cgroup"] == NAMES | {LONG}
    assert guest.taken.keys() == {"mount", "cgroup", "fstype", "host", "deep"}


def test_the_path_of_each_mount_has_its_bytes(guest: Guest) -> None:
    deep = b"//..." + (b"/m" + DEPTH * PART)[-4096:]
    paths = {path for path in guest.paths("superblocks", "mountpoint") if path.startswith((b"/m/", b"//..."))}
    assert paths == {b"/m/" + name for name in guest.taken["mount"]} | {b"/m/fuse", deep}


def test_the_path_of_each_cgroup_has_its_bytes(guest: Guest) -> None:
    nested = {depth * PART for depth in range(1, DEPTH + 1)}
    nested = {path if len(path) <= 4096 else b"//..." + path[-4096:] for path in nested}
    assert guest.paths("memcgs", "path") == {b"/" + name for name in guest.taken["cgroup"]} | nested | {b"/"}
    rows = guest.tables["memcgs"]
    assert len(rows) == len(guest.taken["cgroup"]) + DEPTH + 1


def test_a_filesystem_type_and_a_host_name_can_be_had_again(guest: Guest) -> None:
    fstypes = {unescape(row["fstype"]) for row in guest.tables["superblocks"]}
    assert {fstype for fstype in fstypes if fstype.startswith(b"fuse.")} == guest.taken["fstype"] == {FSTYPE}
    assert {unescape(guest.tables["targets"][0]["host"])} == guest.taken["host"] == {HOST}
