"""A fleet of names for one sshd on loopback, a fifth of them faulty; the kernel to audit is a bundled core."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType

from tests import processes
from tests.fanout.transports.sshd import Client, Server, free_port, make_key
from tests.fanout.transports.test_ssh import CORE, Listener, instead_of_nice, wait_until

End = tuple[str, str | None, int]
"""Status, error_type and attempts of a host."""
GOOD: End = ("ok", None, 1)
FAULTS: dict[str, End] = {
    "refused": ("unreachable", "ConnectionRefused", 1),
    "unresolved": ("unreachable", "NameNotResolved", 1),
    "silent": ("unreachable", "ConnectTimeout", 1),
    "closed": ("unreachable", "ConnectionClosed", 1),
    "unknown_key": ("denied", "HostKeyUnknown", 1),
    "changed_key": ("denied", "HostKeyChanged", 1),
    "stranger": ("denied", "AuthenticationFailed", 1),
    "nologin": ("denied", "NoShell", 1),
    "sudo": ("denied", "Sudo", 1),
    "no_python": ("no_drgn", "NoInterpreter", 1),
    "no_wheel": ("no_drgn", "NoWheel", 1),
    "torn_core": ("bad_core", "Incomplete", 1),
    "hangs": ("timeout", "deadline", 1),
    "dies": ("crashed", "signal:SIGSEGV", 1),
    "memory": ("over_budget", "MemoryError", 1),
    "noise": ("bad_output", "FrameError", 1),
    "torn_frame": ("bad_output", "FrameError", 1),
    "endless": ("bad_output", "output", 1),
    "dropped": ("lost", "ConnectionLost", 2),
    "cut": ("lost", "ConnectionLost", 2),
}
_GOOD_PER_FAULTY = 4
_TIMEOUT_S, _HANG_TIMEOUT_S = 200, 10
_TORN_CORE_BYTES = 1 << 20

# What sshd runs for every host.
_LOGIN = """case $LRU_FAULT in
nologin) exit 1 ;;
sudo) PATH={folder}:$PATH ;;
dropped) kill -9 $PPID ;;
esac
exec sh -c "$SSH_ORIGINAL_COMMAND"
"""
# sudo-rs refuses in these words.
_SUDO = """echo "sudo-rs: I'm sorry $USER. I'm afraid I can't do that" >&2
exit 1"""
_HALF_A_FRAME = """printf 'list-lru-audit snapshot 1\\n{"table": "targets"'"""
# Interpreters of the hosts with a fault behind the login.
_PYTHONS = {
    "no_wheel": f'exec {sys.executable} -S "$@"',  # without the site-packages that have drgn
    "hangs": instead_of_nice("time.sleep(600)"),
    "waits": instead_of_nice("time.sleep(600)"),
    "dies": instead_of_nice("ctypes.string_at(0)"),
    "memory": instead_of_nice("bytes(1 << 60)"),
    "noise": "head -c 200000 /dev/urandom",
    "torn_frame": _HALF_A_FRAME,
    "endless": "exec yes",
    # More than the pipes hold, so that sshd has sent what was printed before; then sshd's session dies.
    "cut": f"head -c 300000 /dev/zero\n{_HALF_A_FRAME}\nkill -9 $PPID",
}


class Fleet:
    """The hosts, while the `with` block lasts. A host is named after its fault, or good, with a number.

    One that waits hangs, too, but has the time of a good one.

    :param address: of the sshd.
    :param prefix: a command that runs the sshd, and its arguments.
    :ivar ssh_config: in which each host is a name.
    :ivar host_mark: the environment variable, as NAME=VALUE, of all processes that run on a host.
    :ivar host_temporary: the hosts' directory for temporary files.
    """

    def __init__(self, folder: Path, address: str = "127.0.0.1", prefix: Sequence[str] = ()) -> None:
        self.folder = folder
        self.host_temporary = folder / "host"
        self.host_mark = f"TMPDIR={self.host_temporary}"
        self.ssh_config = folder / "ssh_config"
        self.wheels = folder / "wheels"
        self.bin = folder / "bin"
        for directory in (self.host_temporary, self.wheels, self.bin):
            directory.mkdir()
        self.torn_core = folder / "torn_core"
        self.torn_core.write_bytes(CORE.read_bytes()[:_TORN_CORE_BYTES])
        self._connections: list[socket.socket] = []
        self._silent = Listener(lambda connection, _: self._connections.append(connection))
        self._closed = Listener(lambda connection, _: connection.close())
        login, _ = self._script("login", _LOGIN.format(folder=self.bin)), self._script("sudo", _SUDO)
        self.pythons = {name: str(self._script(name, text)) for name, text in _PYTHONS.items()}
        options = (f"SetEnv {self.host_mark}", "AcceptEnv LRU_FAULT", f"ForceCommand {login}", "LogLevel VERBOSE")
        self.server = Server(folder / "sshd", f"ListenAddress {address}", *options, prefix=prefix)
        self._write_ssh_config(address)

    def _script(self, name: str, text: str) -> Path:
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return path

    def _write_ssh_config(self, address: str) -> None:
        client, changed = Client(self.folder / "client"), Client(self.folder / "changed")
        client.trust(self.server)
        changed.know(self.server.port, make_key(self.folder / "key"))
        options = {
            "refused": f"Port {free_port()}",
            "unresolved": "HostName nowhere.invalid",
            "silent": f"Port {self._silent.port}\nConnectTimeout 5",
            "closed": f"Port {self._closed.port}",
            "unknown_key": "UserKnownHostsFile /dev/null",
            "changed_key": f"UserKnownHostsFile {changed.known_hosts}",
            "stranger": "PubkeyAuthentication no",
            "nologin": "SetEnv LRU_FAULT=nologin",
            "sudo": "SetEnv LRU_FAULT=sudo",
            "dropped": "SetEnv LRU_FAULT=dropped",
        }
        blocks = [f"Host {fault}-*\n{option}\n" for fault, option in options.items()]
        port = self.server.port
        common = f"Host *\nHostName {address}\nPort {port}\nHostKeyAlias [127.0.0.1]:{port}\nConnectTimeout 60\n"
        self.ssh_config.write_text("".join([*blocks, common, client.config.read_text()]))

    def __enter__(self) -> Fleet:
        self.server.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._silent.__exit__()
        self._closed.__exit__()
        self.server.__exit__(kind, error, tb)

    def expected(self, per_fault: int) -> dict[str, End]:
        """Return the end of each host of a fleet with this number of hosts for each fault."""
        good_count = _GOOD_PER_FAULTY * per_fault * len(FAULTS)
        good = {f"good-{number}": GOOD for number in range(good_count)}
        return good | {f"{fault}-{n}": end for fault, end in FAULTS.items() for n in range(per_fault)}

    def command(self, hosts: Iterable[str]) -> list[str | Path]:
        """Return the arguments of lru-audit that audit these hosts."""
        inventory = self.folder / "fleet.json"
        inventory.write_text(json.dumps([self._entry(host) for host in hosts]))
        options = ["--ssh-config", self.ssh_config, "--ship-drgn", "--drgn-wheels", self.wheels]
        return ["run", "-i", inventory, "--audit", "fleet", "--timeout", str(_TIMEOUT_S), *options]

    def _entry(self, host: str) -> dict[str, object]:
        fault = host.partition("-")[0]
        default_python = str(self.bin / "absent") if fault == "no_python" else sys.executable
        return {
            "target": f"vmcore:{self.torn_core if fault == 'torn_core' else CORE}",
            "name": host,
            "via": f"ssh:{host}",
            "python": self.pythons.get(fault, default_python),
            "become": fault == "sudo",
            "timeout_s": _HANG_TIMEOUT_S if fault == "hangs" else _TIMEOUT_S,
        }

    def wait_until_idle(self) -> None:
        """Wait until no process, file, login or connection is left on the hosts."""
        self.wait_for_collectors(30)
        wait_until(lambda: not self._sessions())
        for connection in self._connections:
            connection.settimeout(30)
            while connection.recv(4096):
                pass

    def wait_for_collectors(self, seconds: float) -> None:
        """Wait until all collectors have ended, and assert that their files are gone."""
        processes.wait_for_exit(self.host_mark, seconds)
        assert os.listdir(self.host_temporary) == []

    def _sessions(self) -> str:
        pid = self.server.process.pid
        return Path(f"/proc/{pid}/task/{pid}/children").read_text()

    def connection_count(self) -> int:
        return self._logged("Connection from")

    def dropped_count(self) -> int:
        """Return the number of connections that sshd has closed because of its MaxStartups."""
        return self._logged("past MaxStartups")

    def _logged(self, text: str) -> int:
        return self.server.log.read_text(errors="replace").count(text)
