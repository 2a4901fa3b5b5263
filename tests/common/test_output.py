"""The file that a command writes: who may read it, and what it replaces."""

from __future__ import annotations

import os
import stat
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pipeline.common.output import open_output

ROOT = Path(__file__).parents[2]
NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
NOBODY = 65534


@pytest.fixture(params=[0o022, 0o077])
def umask(request):
    previous = os.umask(request.param)
    yield request.param
    os.umask(previous)


def write(path: Path, text: str = "new") -> os.stat_result:
    with open_output(path) as file:
        file.write(text)
    assert path.read_text() == text
    assert [name for name in os.listdir(path.resolve().parent) if name.startswith(".")] == []
    return path.stat()


def mode(status: os.stat_result) -> str:
    return stat.filemode(status.st_mode)


def acl_of_user_7(group: int, mask: int, other: int) -> bytes:
    """Return an attribute of include/uapi/linux/posix_acl_xattr.h: user 7 may read."""
    no_id = 0xFFFFFFFF
    entries = [(0x01, 6, no_id), (0x02, 4, 7), (0x04, group, no_id), (0x10, mask, no_id), (0x20, other, no_id)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def set_acl(path: Path, acl: bytes) -> None:
    try:
        os.setxattr(path, "system.posix_acl_access", acl)
    except OSError:
        pytest.skip("needs ACLs")


def test_metrics_can_be_read_by_another_user_and_a_report_is_as_the_umask_says(tmp_path: Path, umask: int) -> None:
    assert mode(write(tmp_path / "lru.prom")) == "-rw-r--r--"
    assert mode(write(tmp_path / "waste.html")) == ("-rw-r--r--" if umask == 0o022 else "-rw-------")


@pytest.mark.parametrize("old", ["-rw-------", "-rw-r-----", "-rw-rw-rw-"])
def test_a_file_that_is_replaced_keeps_its_mode(tmp_path: Path, umask: int, old: str) -> None:
    path = tmp_path / "waste.html"
    path.touch()
    path.chmod({"-rw-------": 0o600, "-rw-r-----": 0o640, "-rw-rw-rw-": 0o666}[old])
    assert mode(write(path)) == old


def test_metrics_that_only_root_could_read_become_readable(tmp_path: Path) -> None:
    path = tmp_path / "lru.prom"
    path.touch(0o600)
    assert mode(write(path)) == "-rw-r--r--"


@NEEDS_ROOT
def test_a_file_that_is_replaced_keeps_owner_and_group(tmp_path: Path) -> None:
    path = tmp_path / "waste.html"
    path.touch()
    os.chown(path, NOBODY, 7)
    path.chmod(0o640)
    status = write(path)
    assert (status.st_uid, status.st_gid, mode(status)) == (NOBODY, 7, "-rw-r-----")


@NEEDS_ROOT
@pytest.mark.parametrize("acl", [None, acl_of_user_7(group=6, mask=6, other=4)])
def test_a_group_that_cannot_be_kept_gives_its_rights_to_no_other(acl: bytes | None) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # that another user may enter
        os.chmod(folder, 0o777)
        path = Path(folder, "waste.html")
        path.touch()
        path.chmod(0o664)  # root's
        if acl:
            set_acl(path, acl)
        program = (
            "import os; from pathlib import Path; from pipeline.common.output import open_output\n"
            f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
            f"with open_output(Path('{path}')) as file: file.write('new')"
        )
        subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
        status = path.stat()
        assert (status.st_uid, mode(status)) == (NOBODY, "-rw-r--r--")
        assert "system.posix_acl_access" not in os.listxattr(path)


def test_a_file_that_is_replaced_keeps_its_acl(tmp_path: Path) -> None:
    acl = acl_of_user_7(group=0, mask=4, other=0)
    path = tmp_path / "waste.html"
    path.touch()
    set_acl(path, acl)
    write(path)
    assert os.getxattr(path, "system.posix_acl_access") == acl


def test_a_link_stays_and_its_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "www").mkdir()
    link = tmp_path / "waste.html"
    link.symlink_to("www/waste.html")
    write(link, "first")
    write(link, "second")
    assert link.is_symlink()
    assert (tmp_path / "www/waste.html").read_text() == "second"


def test_a_file_stays_whole_when_its_replacement_fails(tmp_path: Path) -> None:
    path = tmp_path / "waste.html"
    write(path, "old")
    with pytest.raises(UnicodeEncodeError), open_output(path) as file:
        file.write("ne\udc80")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["waste.html"]


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_a_pipe_is_written_to(name: str) -> None:
    program = (
        "from pathlib import Path; from pipeline.common.output import open_output\n"
        f"with open_output(Path('{name}')) as file: file.write('new')"
    )
    process = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True)
    assert (process.stdout, process.stderr) == (b"new", b"")


def test_a_device_is_written_to_and_stays(tmp_path: Path) -> None:
    with open_output(Path("/dev/full")) as file:
        pass
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"), open_output(Path("/dev/full")) as file:
        file.write("new")
