"""Hosts without Python: real OpenSSH on loopback, and busybox in a root directory with a C library and no Python."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import importlib.util
import io
import lzma
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow
import pytest

from pipeline.fanout import runner
from pipeline.fanout.transports import standalone
from pipeline.inventory import Target
from tests.fanout.transports.pythons import ARCH, PYTHON, VERSION, add, archive, drgn_wheels
from tests.fanout.transports.sshd import SSHD, USER, Client, Server
from tests.fanout.transports.test_ssh import CORE, Listener, relay, status_and_error, wait_until

__all__ = ["archive", "drgn_wheels"]

BUSYBOX = shutil.which("busybox")
APPLETS = "cat chmod cp df dd env false gzip head id ls mkdir mktemp nice rm sleep tail tar test timeout true uname wc"

WAIT_S = 180  # to unpack and start a Python on a busy machine
SKIP_REASON = "needs sshd" if SSHD is None else "needs busybox" if BUSYBOX is None else "needs root"
needs_bare_host = pytest.mark.skipif(not (SSHD and BUSYBOX and os.geteuid() == 0), reason=SKIP_REASON)


def shared_libraries(*files: Path) -> set[Path]:
    """Return the shared libraries of these files, and the dynamic loader, by the paths that the loader uses."""
    text = subprocess.run(["ldd", *files], capture_output=True, text=True, check=False).stdout
    return {Path(path) for path in re.findall(r"(/\S+) \(0x", text)}


class BareHost:
    """A root directory with busybox and shared libraries, and an sshd whose logins run in it.

    :param mounts: shell commands that precede each login, in a mount namespace of its own; ``$root`` is the directory.
    """

    PLACES = ("tmp", "var/tmp", "dev/shm", "run", "root")

    def __init__(self, folder: Path, client: Client) -> None:
        self.root = folder / "root"
        self.client = client
        self.mounts = folder / "mounts"
        self.mounts.touch()
        for name in ("bin", "proc", *self.PLACES):
            (self.root / name).mkdir(parents=True)
        (self.root / "var/tmp").chmod(0o1777)
        os.mknod(self.root / "dev/null", 0o666 | 0o020000, os.makedev(1, 3))
        shutil.copy(str(BUSYBOX), self.root / "bin/busybox")
        for applet in APPLETS.split():
            (self.root / "bin" / applet).symlink_to("busybox")
        shutil.copy("/bin/sh", self.root / "bin/sh")  # busybox' own would run applets that are not there
        modules = Path(f"/usr/lib/python{VERSION}/lib-dynload").glob("*.so")
        drgn = importlib.util.find_spec("_drgn")
        assert drgn is not None
        for library in shared_libraries(Path("/bin/sh"), Path(str(BUSYBOX)), PYTHON, Path(str(drgn.origin)), *modules):
            if library.parts[1] in ("lib", "lib64", "usr"):
                target = self.root / library.relative_to("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(library, target)
        shutil.copytree(CORE.parent, self.root / "core")
        self.forced_command = folder / "forced_command"
        enter = (
            f"root={self.root}; mount --bind $root $root && mount --bind /proc $root/proc && . {self.mounts} && "
            'cd / && exec chroot $root /bin/sh -c "$SSH_ORIGINAL_COMMAND"'
        )
        self.forced_command.write_text(f"#!/bin/sh\nexec unshare -m sh -c {shlex.quote(enter)}\n")
        self.forced_command.chmod(0o755)

    def target(self, server: Server, **fields: object) -> Target:
        return Target(
            **{"name": "t", "kind": "vmcore", "source": "/core/vmcore", "via": f"ssh:{USER}@127.0.0.1:{server.port}"}
            | {"ssh_config": str(self.client.config), **fields}  # type: ignore[arg-type]
        )

    def replace_program(self, name: str, script: str | None) -> None:
        """Replace a program of the host by a shell script, or remove it."""
        (self.root / "bin" / name).unlink(missing_ok=True)
        if script is not None:
            (self.root / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
            (self.root / "bin" / name).chmod(0o755)

    def leftovers(self) -> list[Path]:
        return [path for place in self.PLACES for path in (self.root / place).iterdir() if path.name != "shm"]


@pytest.fixture
def host(tmp_path: Path, client: Client) -> BareHost:
    return BareHost(tmp_path, client)


@pytest.fixture
def server(tmp_path: Path, client: Client, host: BareHost) -> Iterator[Server]:
    with Server(tmp_path / "sshd", f"ForceCommand {host.forced_command}") as server:
        client.trust(server)
        yield server


@pytest.fixture
def target(host: BareHost, server: Server, archive: Path, drgn_wheels: Path) -> Target:
    return host.target(server, ship_python=str(archive), drgn_wheels=str(drgn_wheels))


def run(target: Target) -> dict:
    return runner.run(target, 1, runner.Limits(timeout_s=300))


def refused(target: Target) -> tuple[str, str]:
    """Return error_type and error of a target that ends as `no_drgn`."""
    attempt = run(target)["attempt"]
    assert attempt["status"] == "no_drgn", attempt
    return attempt["error_type"], attempt["error"]


@needs_bare_host
def test_a_host_without_python_is_audited_with_the_same_rows(host, target):
    assert refused(dataclasses.replace(target, ship_python=None))[0] == "NoInterpreter"
    result = run(target)
    assert status_and_error(result) == ("ok", None)
    assert result["tables"] == run(Target("t", "vmcore", str(CORE)))["tables"]
    assert host.leftovers() == []


@needs_bare_host
@pytest.mark.parametrize("python3", ["exit 1", "echo 'import sys' >&2; kill -SEGV $$"])
def test_a_python_that_is_incomplete_or_too_old_counts_as_none(host, target, python3):
    host.replace_program("python3", python3)
    assert status_and_error(run(target)) == ("ok", None)


def test_a_host_with_python_gets_none(tmp_path, client, archive, drgn_wheels):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python3").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (tmp_path / "bin/python3").chmod(0o755)
    (tmp_path / "tmp").mkdir()
    before = (tmp_path / "tmp").stat()
    command = tmp_path / "forced_command"
    command.write_text(
        f'#!/bin/sh\nPATH={tmp_path}/bin:$PATH TMPDIR={tmp_path}/tmp exec sh -c "$SSH_ORIGINAL_COMMAND"\n'
    )
    command.chmod(0o755)
    with Server(tmp_path / "sshd", f"ForceCommand {command}") as server:
        client.trust(server)
        via = f"ssh:{USER}@127.0.0.1:{server.port}"
        fields = {"ship_python": str(archive), "drgn_wheels": str(drgn_wheels), "ssh_config": str(client.config)}
        assert status_and_error(run(Target("t", "vmcore", str(CORE), via, **fields))) == ("ok", None)
    assert (tmp_path / "tmp").stat().st_mtime_ns == before.st_mtime_ns


@needs_bare_host
def test_a_host_without_gzip_gets_the_archive_uncompressed(host, target):
    host.replace_program("gzip", None)
    assert status_and_error(run(target)) == ("ok", None)
    assert host.leftovers() == []


@needs_bare_host
def test_a_directory_where_nothing_can_be_executed_is_passed_over(host, target):
    host.mounts.write_text("mount -t tmpfs -o noexec none $root/tmp; mount -t tmpfs -o size=4m none $root/var/tmp")
    result = run(target)
    assert status_and_error(result) == ("ok", None)
    assert host.leftovers() == []


@needs_bare_host
@pytest.mark.parametrize("options", ["noexec", "size=4m"])
def test_a_host_without_a_place_for_it(host, target, options):
    host.mounts.write_text(
        "".join(f"mount -t tmpfs -o {options} none $root/{place}\n" for place in BareHost.PLACES if place != "root")
        + f"mount -t tmpfs -o {options} none $root/root"
    )
    kind, error = refused(target)
    assert kind == "NoRoom"
    assert re.search(r"none of TMPDIR or /tmp, .* has \d+ MiB for one, is writable and not noexec$", error)


@needs_bare_host
def test_a_host_that_is_full_after_all(host, target):
    host.mounts.write_text("mount -t tmpfs -o size=4m none $root/tmp")
    host.replace_program("df", "echo none 99999999 1 99999998 0% /tmp")
    kind, error = refused(target)
    assert kind == "NotUnpacked"
    assert "cannot be unpacked on the host; stderr: /tmp/lru-audit." in error
    assert "No space left on device" in error


@needs_bare_host
@pytest.mark.parametrize("tool", ["chmod", "rm", "tar", "timeout"])
def test_a_host_without_the_tools_to_unpack_it(host, target, tool):
    host.replace_program(tool, None)
    kind, error = refused(target)
    assert kind == "NoTool"
    assert f"no {tool} to unpack one" in error


@needs_bare_host
def test_a_host_of_another_architecture(host, target):
    host.replace_program("uname", "echo riscv64")
    kind, error = refused(target)
    assert kind == "OtherArchitecture"
    assert f"it is riscv64, and --ship-python has Python {VERSION} for {ARCH}" in error


@needs_bare_host
def test_what_a_host_says_that_is_not_a_name_is_quoted(host, target):
    host.replace_program("uname", "echo 'my secret/name'")
    kind, error = refused(target)
    assert kind == "NotSent"
    assert "secret" not in runner.without_quoted_stderr(error)
    assert error.endswith("; stderr: my secret/name")


def changed(archive: Path, path: Path, change: Callable[[bytes], bytes], files: dict[str, bytes] | None = None) -> str:
    """Write a copy of an archive whose interpreter is changed, with these files in its library; return its path."""
    with tarfile.open(archive) as old, tarfile.open(path, "w") as new:
        for name, content in (files or {}).items():
            add(new, f"python/lib/python{VERSION}/{name}", content)
        for member in old:
            file = old.extractfile(member) if member.isreg() else None
            if file is None or member.name != f"python/bin/python{VERSION}":
                new.addfile(member, file)
            else:
                content = change(file.read())
                member.size = len(content)
                new.addfile(member, io.BytesIO(content))
    return str(path)


@needs_bare_host
def test_a_host_without_the_dynamic_loader(host, target, archive, tmp_path):
    loader = re.search(rb"/lib64/ld-linux-x86-64.so.2|/lib/ld-linux-aarch64.so.1", PYTHON.read_bytes())[0]
    path = changed(archive, tmp_path / "a.tar", lambda elf: elf.replace(loader, loader[:-1] + b"9"))
    kind, error = refused(dataclasses.replace(target, ship_python=path))
    assert kind == "OtherLibrary"
    assert f"no {loader[:-1].decode()}9" in error


@needs_bare_host
def test_a_host_with_an_older_c_library(host, target, archive, tmp_path):
    path = changed(archive, tmp_path / "a.tar", lambda elf: re.sub(rb"GLIBC_2\.3\d\0", b"GLIBC_9.99\0", elf))
    kind, error = refused(dataclasses.replace(target, ship_python=path))
    assert kind == "NotStarted"
    assert "does not start on the host" in error
    assert "GLIBC_9.99" in error
    assert host.leftovers() == []


@needs_bare_host
def test_no_wheel_for_it_names_what_to_fetch(host, target, tmp_path):
    (tmp_path / "wheels").mkdir()
    kind, error = refused(dataclasses.replace(target, drgn_wheels=str(tmp_path / "wheels")))
    assert kind == "NoWheel"
    assert f"run lru-audit fetch-drgn --python {VERSION} --arch {ARCH}" in error
    wait_until(lambda: host.leftovers() == [], WAIT_S)


# Whatever ends it


@pytest.fixture
def hanging_target(target: Target, archive: Path, tmp_path: Path) -> Target:
    """A target whose collector hangs after it has loaded drgn."""
    path = changed(
        archive, tmp_path / "a.tar", bytes, {"json/__init__.py": b"import time; open('/hangs', 'w'); time.sleep(600)"}
    )
    return dataclasses.replace(target, ship_python=path)


def processes_in(root: Path) -> list[int]:
    """Return the processes whose root directory this is."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/root"):
        with contextlib.suppress(OSError):
            if path.samefile(root):
                pids.append(int(path.parent.name))
    return pids


def collectors(host: BareHost) -> list[int]:
    """Return the Pythons on a host: a supervisor and its collector."""
    pids = []
    for pid in processes_in(host.root):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/exe").readlink().name == "python3":
                pids.append(pid)
    return sorted(pids)


@contextlib.contextmanager
def running(target: Target) -> Iterator[list[dict]]:
    """Collect a target in a thread while the block lasts; the list has its attempt afterwards."""
    results: list[dict] = []
    thread = threading.Thread(target=lambda: results.append(run(target)["attempt"]))
    thread.start()
    yield results
    thread.join()


@needs_bare_host
def test_nothing_is_left_after_a_timeout(host, hanging_target):
    with running(dataclasses.replace(hanging_target, timeout_s=15)) as results:
        pass
    assert results[0]["status"] == "timeout"
    wait_until(lambda: not processes_in(host.root) and host.leftovers() == [], WAIT_S)


@needs_bare_host
@pytest.mark.parametrize("victim", ["session", "supervisor", "collector"])
def test_nothing_is_left_after_a_kill(host, hanging_target, tmp_path, victim):
    with running(hanging_target) as results:
        wait_until((host.root / "hangs").exists, WAIT_S)
        supervisor, collector = collectors(host)
        pids = {"supervisor": supervisor, "collector": collector}
        os.kill(pids[victim] if victim in pids else session_pid(), signal.SIGKILL)
    assert results[0]["status"] == "crashed"
    wait_until(lambda: not processes_in(host.root) and host.leftovers() == [], WAIT_S)


def session_pid() -> int:
    """Return the process that talks to ssh, a child of this one."""
    for path in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            is_child = re.search(rf"PPid:\t{os.getpid()}\n", path.read_text()) is not None
            if is_child and b"session.main" in (path.parent / "cmdline").read_bytes():
                return int(path.parent.name)
    raise AssertionError("no session")


@needs_bare_host
@pytest.mark.parametrize("after_bytes", [1_000_000, None])
def test_nothing_is_left_after_a_cut(host, server, client, hanging_target, after_bytes):
    """Cut while the Python is received, after a number of bytes, or while the collector runs."""
    connections: list[socket.socket] = []

    def answer(connection: socket.socket, number: int) -> None:
        connections.append(connection)
        relay(server.port, after_bytes)(connection)

    with Listener(answer) as wire:
        client.know(wire.port, server.host_key)
        target = dataclasses.replace(hanging_target, via=f"ssh:{USER}@127.0.0.1:{wire.port}")
        with running(target) as results:
            if after_bytes is None:
                wait_until((host.root / "hangs").exists, WAIT_S)
                connections[0].shutdown(socket.SHUT_RDWR)
        assert results[0]["status"] == "lost", results
    wait_until(lambda: not processes_in(host.root) and host.leftovers() == [], WAIT_S)


# The archive


@pytest.mark.parametrize("suffix", ["tar", "tar.xz", "tar.zst"])
def test_each_form_of_an_archive_is_read(archive, tmp_path, suffix):
    with tarfile.open(archive) as tar:
        interpreter = tar.extractfile(f"python/bin/python{VERSION}").read()
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        add(tar, f"python/install/bin/python{VERSION}", interpreter)
        add(tar, f"python/install/lib/python{VERSION}/os.py", b"")
    path = tmp_path / f"cpython.{suffix}"
    compress = {"tar": bytes, "tar.xz": lzma.compress, "tar.zst": pyarrow.Codec("zstd").compress}[suffix]
    path.write_bytes(bytes(compress(content.getvalue())))
    build = standalone.look(str(path))
    assert (build.version, build.arch, build.prefix) == (VERSION, ARCH, "python/install/")
    (names, _) = sent(path)
    assert names == ["bin/python3", f"lib/python{VERSION}/os.py"]


def sent(path: Path) -> tuple[list[str], dict[str, bytes]]:
    """Return the names in the archive that is sent, sorted, and the contents of its files."""
    package = standalone.package(str(path))
    data = Path(package.path).read_bytes()
    assert len(data) == package.gzip_bytes
    assert len(gzip.decompress(data)) == package.tar_bytes
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = tar.getmembers()
        return sorted(tar.getnames()), {m.name: tar.extractfile(m).read() for m in members if m.isreg()}


def test_what_an_audit_does_not_load_is_left_out(archive, tmp_path):
    names, contents = sent(archive)
    assert {"bin/python3", f"lib/python{VERSION}/os.py", f"lib/python{VERSION}/json/__init__.py"} <= set(names)
    assert not [name for name in names if re.search("site-packages|__pycache__|/test/|tcl|tkinter|ensurepip", name)]
    # Without its section headers, which strip keeps, an ELF file is shorter and still runs.
    shutil.copy(PYTHON, tmp_path / "stripped")
    subprocess.run(["strip", tmp_path / "stripped"], check=True)
    assert len(contents["bin/python3"]) < (tmp_path / "stripped").stat().st_size


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "no bin/python3.N in it"),
        ({"python/bin/python3": b"#!/bin/sh"}, "no bin/python3.N in it"),
        ({"python/bin/python3.12": b"#!/bin/sh"}, "not an ELF file of 64 bits"),
        ({"python/bin/python3.12": b"\x7fELF\x01" + bytes(99)}, "not an ELF file of 64 bits"),
        ({"python/bin/python3.12": b"\x7fELF\x02\x01" + b"\xff" * 99}, "damaged"),
        ({"bin/python3.12": None, "other": b""}, "its Python is started by '/lib/ld-musl-x86_64.so.1'; drgn needs"),
    ],
)
def test_what_is_not_a_python_is_one_clear_error(tmp_path, files, reason):
    elf = PYTHON.read_bytes()
    musl = elf.replace(b"/lib64/ld-linux-x86-64.so.2\0", b"/lib/ld-musl-x86_64.so.1\0\0\0\0")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in files.items():
            add(tar, name, musl if content is None else content)
    with pytest.raises(standalone.StandaloneError) as error_info:
        standalone.look(str(tmp_path / "a.tar"))
    assert str(error_info.value).startswith(f"{tmp_path}/a.tar: ")
    assert reason in str(error_info.value) if files else "not a tar archive" in str(error_info.value)


def test_names_that_lead_elsewhere_are_not_sent(tmp_path):
    library = f"lib/python{VERSION}"
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, f"python/bin/python{VERSION}", PYTHON.read_bytes())
        add(tar, f"python/{library}/os.py", b"")
        for name in (f"{library}/../../evil", f"{library}/new\nline.py", f"{library}/-rf", "lib/libx.so"):
            add(tar, f"python/{name}", b"x")
        for name, target in ((f"{library}/up", "../../../etc/passwd"), ("lib/liby.so", "libx.so")):
            link = tarfile.TarInfo(f"python/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, target
            tar.addfile(link)
    names, _ = sent(tmp_path / "a.tar")
    assert names == ["bin/python3", "lib/libx.so", "lib/liby.so", f"{library}/-rf", f"{library}/os.py"]
