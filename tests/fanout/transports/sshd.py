"""Real OpenSSH servers on loopback, each with its own host key, and client configurations to reach them."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
USER = getpass.getuser()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def make_key(path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path


class Server:
    """An sshd that runs until the end of the `with` block.

    :param options: lines of sshd_config. They precede the others, since the first line of a keyword counts.
    :param prefix: a command that runs another one, and its arguments.
    """

    def __init__(self, folder: Path, *options: str, prefix: Sequence[str] = ()) -> None:
        folder.mkdir()
        self.prefix = prefix
        self.port = free_port()
        self.host_key = make_key(folder / "host_key")
        self.authorized_keys = folder / "authorized_keys"
        self.log = folder / "log"
        self.config = folder / "sshd_config"
        lines = [
            *options,
            f"Port {self.port}",
            "ListenAddress 127.0.0.1",
            f"HostKey {self.host_key}",
            f"AuthorizedKeysFile {self.authorized_keys}",
            f"PidFile {folder / 'pid'}",
            "StrictModes no",
            "UsePAM no",
            "PermitRootLogin prohibit-password",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
        ]
        self.config.write_text("\n".join(lines) + "\n")

    def __enter__(self) -> Server:
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # required by privilege separation
        with self.log.open("w") as log:
            self.process = subprocess.Popen([*self.prefix, str(SSHD), "-D", "-e", "-f", str(self.config)], stderr=log)
        deadline = time.monotonic() + 10
        while "listening" not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, "sshd does not listen"
            time.sleep(0.02)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.process.terminate()
        self.process.wait(10)


class Client:
    """An ssh_config with its own key and known_hosts."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.key = make_key(folder / "key")
        self.known_hosts = folder / "known_hosts"
        self.known_hosts.touch()
        self.config = folder / "ssh_config"
        self.config.write_text(
            f"UserKnownHostsFile {self.known_hosts}\nGlobalKnownHostsFile /dev/null\n"
            f"IdentityFile {self.key}\nIdentitiesOnly yes\nIdentityAgent none\nStrictHostKeyChecking yes\n"
        )

    def trust(self, server: Server) -> None:
        """Make the server accept this client's key, and the client the server's host key."""
        self.know(server.port, server.host_key)
        shutil.copy(self.key.with_suffix(".pub"), server.authorized_keys)

    def know(self, port: int, host_key: Path) -> None:
        with self.known_hosts.open("a") as file:
            file.write(f"[127.0.0.1]:{port} {host_key.with_suffix('.pub').read_text()}")
