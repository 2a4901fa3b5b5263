"""Logins that become root through sudo: the real one, and others by what they print."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fanout.transports.pythons import archive, drgn_wheels
from tests.fanout.transports.sshd import SSHD, USER, Client, Server
from tests.fanout.transports.test_ssh import CORE, as_root, core_via, failure, run, status_and_error, wheels, with_sudo

__all__ = ["archive", "drgn_wheels", "wheels"]
pytestmark = pytest.mark.skipif(SSHD is None, reason="needs sshd")

PYTHON = "/usr/bin/python3"  # that "nobody" may run
RULE = f"nobody ALL=(root) NOPASSWD: {PYTHON}"


def as_nobody(tmp_path: Path, *sudoers: str, expired: bool = False, path: Path | None = None) -> str:
    """Return the option of an sshd whose logins all run as user "nobody".

    :param sudoers: lines of a file in /etc/sudoers.d.
    :param expired: whether the account has expired.
    :param path: the PATH of the login, whose TMPDIR is tmp_path/tmp.
    """
    mounts = []
    if sudoers:
        folder = tmp_path / "sudoers.d"
        folder.mkdir()
        (folder / "rules").write_text("".join(f"{line}\n" for line in sudoers))
        mounts.append(f"mount --bind {folder} /etc/sudoers.d")
    if expired:
        shadow = tmp_path / "shadow"
        lines = Path("/etc/shadow").read_text().splitlines()
        lines = [line for line in lines if not line.startswith("nobody:")]
        shadow.write_text("\n".join([*lines, "nobody:*:19000:0:99999:7::1:", ""]))
        mounts.append(f"mount --bind {shadow} /etc/shadow")
    forced_command = tmp_path / "forced_command"
    drop = 'exec setpriv --reuid=nobody --regid=nogroup --clear-groups /bin/sh -c "$SSH_ORIGINAL_COMMAND"'
    if path is not None:
        drop = f"export PATH={path} TMPDIR={tmp_path}/tmp; {drop.replace('setpriv', str(shutil.which('setpriv')))}"
    script = " && ".join([*mounts, drop])
    forced_command.write_text(f"#!/bin/sh\ncd /\nexec unshare -m sh -c {shlex.quote(script)}\n")
    forced_command.chmod(0o755)
    return f"ForceCommand {forced_command}"


@pytest.fixture
def hidden_core(tmp_path: Path) -> Path:
    """A core that only root may read, in a folder that everyone may enter."""
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(folder.stat().st_mode | 0o011)
    core = tmp_path / "core"
    shutil.copy(CORE, core)
    core.chmod(0o600)
    return core


@as_root
@with_sudo
def test_sudo_that_wants_a_password_is_denied_with_the_rule_that_helps(tmp_path, client, wheels, hidden_core):
    fields = {"source": str(hidden_core), "python": None, "drgn_wheels": str(wheels)}
    with Server(tmp_path / "first", as_nobody(tmp_path)) as server:
        client.trust(server)
        status, _, error = failure(core_via(server, client, **fields))
        assert status == "denied"
        assert "run as root" in error
        status, kind, error = failure(core_via(server, client, **fields, become=True))
    assert (status, kind) == ("denied", "Sudo")
    assert "a password is required" in error
    rule = re.search(rf"{USER} ALL=\(root\) NOPASSWD: \S+", error)[0].replace(USER, "nobody", 1)
    with Server(tmp_path / "second", as_nobody(tmp_path, rule)) as server:
        client.trust(server)
        assert status_and_error(run(core_via(server, client, **fields, become=True))) == ("ok", None)


@as_root
@with_sudo
@pytest.mark.parametrize(
    ("sudoers", "said", "remedy"),
    [
        (["nobody ALL=(root) NOPASSWD: /bin/true"], "a password is required", f"{USER} ALL=(root) NOPASSWD: "),
        (["Defaults requiretty", RULE], "must have a tty", f"Defaults:{USER} !requiretty"),
    ],
)
def test_what_sudo_refuses_and_the_line_that_lets_it_in(tmp_path, client, wheels, hidden_core, sudoers, said, remedy):
    fields = {"source": str(hidden_core), "python": PYTHON, "drgn_wheels": str(wheels), "become": True}
    with Server(tmp_path / "first", as_nobody(tmp_path, *sudoers)) as server:
        client.trust(server)
        status, kind, error = failure(core_via(server, client, **fields))
    assert (status, kind) == ("denied", "Sudo")
    assert said in error
    line = re.search(r"add the line (.*) to the host's sudoers", error)[1]
    assert line.startswith(remedy)
    shutil.rmtree(tmp_path / "sudoers.d")
    with Server(tmp_path / "second", as_nobody(tmp_path, *sudoers, line.replace(USER, "nobody", 1))) as server:
        client.trust(server)
        assert status_and_error(run(core_via(server, client, **fields))) == ("ok", None)


@as_root
@with_sudo
def test_a_python_that_was_sent_is_run_through_sudo_with_the_rule_that_helps(
    tmp_path, client, drgn_wheels, archive, hidden_core
):
    """A host without Python is a PATH without it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("sh", "chmod", "gzip", "head", "mktemp", "rm", "sudo", "tar", "timeout", "uname"):
        (folder / tool).symlink_to(str(shutil.which(tool)))
    fields = {"source": str(hidden_core), "python": None, "drgn_wheels": str(drgn_wheels), "become": True}
    fields["ship_python"] = str(archive)
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp").chmod(0o1777)
    with Server(tmp_path / "first", as_nobody(tmp_path, path=folder)) as server:
        client.trust(server)
        status, kind, error = failure(core_via(server, client, **fields))
    assert (status, kind) == ("denied", "Sudo"), error
    rule = re.search(rf"{USER} ALL=\(root\) NOPASSWD: \S+", error)[0].replace(USER, "nobody", 1)
    assert rule == "nobody ALL=(root) NOPASSWD: ALL"
    with Server(tmp_path / "second", as_nobody(tmp_path, rule, path=folder)) as server:
        client.trust(server)
        assert status_and_error(run(core_via(server, client, **fields))) == ("ok", None)
    assert list((tmp_path / "tmp").iterdir()) == []


@as_root
@with_sudo
def test_an_account_that_has_expired(tmp_path, client):
    with Server(tmp_path / "sshd", as_nobody(tmp_path, RULE, expired=True)) as server:
        client.trust(server)
        status, kind, error = failure(core_via(server, client, python=PYTHON, become=True))
    assert (status, kind) == ("denied", "Sudo")
    assert f"the account {USER} is expired or locked there; stderr: sudo: " in error


@as_root
@with_sudo
def test_a_sudo_without_new_privileges(tmp_path, client):
    option = as_nobody(tmp_path, RULE)
    script = tmp_path / "forced_command"
    script.write_text(script.read_text().replace("setpriv ", "setpriv --no-new-privs "))
    with Server(tmp_path / "sshd", option) as server:
        client.trust(server)
        status, kind, error = failure(core_via(server, client, python=PYTHON, become=True))
    assert (status, kind) == ("denied", "Sudo")
    assert "sudo cannot become root there" in error


# Programs named sudo


@pytest.fixture
def sudo(tmp_path: Path, client: Client) -> Iterator[tuple[Server, Callable[[str], None]]]:
    """A server, and a function that makes a script the `sudo` of its logins."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def make(script: str) -> None:
        (folder / "sudo").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "sudo").chmod(0o755)

    with Server(tmp_path / "sshd", f"SetEnv PATH={folder}:/usr/bin:/bin") as server:
        client.trust(server)
        yield server, make


NOPASSWD = f"; add the line {USER} ALL=(root) NOPASSWD: {sys.executable} to the host's sudoers"
NO_TTY = f"; add the line Defaults:{USER} !requiretty to the host's sudoers"
EXPIRED = f"; the account {USER} is expired or locked there"
NO_ROOT = "; sudo cannot become root there: "

# Lines of sudo 1.8 and 1.9 (plugins/sudoers, src/sudo.c), of sudo-rs (src/common/error.rs, src/pam/error.rs), of doas.
WORDS = [
    ("sudo: a password is required", NOPASSWD),
    ("sudo: a terminal is required to read the password; either use ssh's -t option or configure an askpass helper",
     NOPASSWD),
    ("Sorry, user admin is not allowed to execute '/usr/bin/python3 -c ...' as root on web1.", NOPASSWD),
    ("Sorry, user admin may not run sudo on web1.", NOPASSWD),
    ("admin is not in the sudoers file.", NOPASSWD),
    ("sudo: authentication failure", NOPASSWD),
    ("sudo-rs: I'm sorry admin. I'm afraid I can't do that", NOPASSWD),
    ("sudo: interactive authentication is required", NOPASSWD),
    ("sudo-rs: Interaction is required", NOPASSWD),
    ("sudo-rs: Authentication required but not attempted", NOPASSWD),
    ("sudo-rs: A terminal is required to authenticate", NOPASSWD),
    ("sudo: sorry, you must have a tty to run sudo", NO_TTY),
    ("sudo: account validation failure, is your account locked?", EXPIRED),
    ("sudo: Account or password is expired, reset your password and try again", EXPIRED),
    ("sudo: Password expired, contact your system administrator", EXPIRED),
    ("sudo: PAM account management error: Permission denied", EXPIRED),
    ('sudo: The "no new privileges" flag is set, which prevents sudo from running as root.', NO_ROOT),
    ("sudo: effective uid is not 0, is /usr/bin/sudo on a file system with the 'nosuid' option set?", NO_ROOT),
    ("sudo: /usr/bin/sudo must be owned by uid 0 and have the setuid bit set", NO_ROOT),
    ("sudo: /etc/sudo.conf is owned by uid 1000, should be 0", "; stderr: "),
    ("sudo: no valid sudoers sources found, quitting", "; stderr: "),
    ("sudo: /usr/bin/python3: command not found", "; stderr: "),
    ("doas: Operation not permitted", "; stderr: "),
    ("Das Wort, das keiner kennt", "; stderr: "),
]  # fmt: skip


@pytest.mark.parametrize(("words", "remedy"), WORDS)
def test_whatever_sudo_says_it_is_denied_with_the_remedy_that_fits(sudo, client, words, remedy):
    server, make = sudo
    make(f"echo 'sudo: unable to resolve host web1' >&2; echo {shlex.quote(words)} >&2; exit 1")
    status, kind, error = failure(core_via(server, client, become=True))
    assert (status, kind) == ("denied", "Sudo")
    assert error.startswith(f"127.0.0.1: sudo did not run the collector{remedy}")
    assert error.endswith(f"; stderr: sudo: unable to resolve host web1 / {words}")


@pytest.mark.parametrize("script", ["exit 0", "echo use pbrun; exit 0", "echo use pbrun >&2", 'exec "$@" < /dev/null'])
def test_a_sudo_that_ends_well_without_the_collector_is_denied(sudo, client, script):
    server, make = sudo
    make(script)
    assert failure(core_via(server, client, become=True))[:2] == ("denied", "Sudo")


def test_a_sudo_that_says_nothing_or_is_killed(sudo, client):
    server, make = sudo
    make("exit 3")
    assert failure(core_via(server, client, become=True))[:2] == ("denied", "Sudo")
    make("exit 139")  # as a shell around it says of SIGSEGV
    status, kind, error = failure(core_via(server, client, become=True))
    assert (status, kind) == ("denied", "Sudo")
    assert f"sudo or {sys.executable} was ended by SIGSEGV" in error


def test_a_host_without_sudo(tmp_path, client):
    (tmp_path / "sh").symlink_to("/bin/sh")
    with Server(tmp_path / "sshd", f"SetEnv PATH={tmp_path}") as server:
        client.trust(server)
        status, kind, error = failure(core_via(server, client, become=True))
    assert (status, kind) == ("denied", "Sudo")
    assert "sudo is not installed on the host: log in as root" in error


# Whatever ends the start, with its exit code and what the error says of it.
STARTS = [
    ('shift 2; PYTHONHOME=/nonexistent exec "$@"', "sudo did not run the collector; Python has started and failed;"),
    ("echo 'sudo: error while loading shared libraries: libsudo_util.so.0: cannot open' >&2; exit 127",
     "sudo did not run the collector; stderr: sudo: error while loading"),
    ("echo 'sudo: unable to execute /usr/bin/python3: Exec format error' >&2; exit 1",
     "sudo did not run the collector; stderr: sudo: unable to execute"),
    ("echo 'Das Wort' >&2; exit 255", "sudo did not run the collector; stderr: Das Wort"),
]  # fmt: skip


@pytest.mark.parametrize(("script", "said"), STARTS)
def test_whatever_keeps_the_collector_from_running_behind_sudo_is_denied(sudo, client, script, said):
    server, make = sudo
    make(script)
    status, kind, error = failure(core_via(server, client, become=True))
    assert (status, kind) == ("denied", "Sudo")
    assert error.startswith(f"127.0.0.1: {said}")


@pytest.mark.parametrize(("code", "remedy"), [(125, ""), (1, NOPASSWD.replace(sys.executable, "/usr/bin/env"))])
def test_the_words_of_a_command_of_several_words_are_not_sudos(sudo, client, code, remedy):
    """podman's exit code is 125 where it fails itself."""
    server, make = sudo
    make(f"echo 'Error: unable to pull: unauthorized: authentication required' >&2; exit {code}")
    status, kind, error = failure(core_via(server, client, become=True, python=f"/usr/bin/env {sys.executable}"))
    assert (status, kind) == ("denied", "Sudo")
    said = f"sudo or /usr/bin/env did not run the collector (exit code {code}){remedy}; stderr: Error: unable to pull"
    assert error.startswith(f"127.0.0.1: {said}")


def test_a_connection_lost_before_sudo_has_ended_is_lost(sudo, client):
    server, make = sudo
    make("kill -9 $PPID; sleep 60")  # sshd's process of this login
    assert failure(core_via(server, client, become=True))[:2] == ("lost", "ConnectionLost")


def test_a_program_that_says_something_without_an_end_of_line(sudo, client):
    server, make = sudo
    make('printf "50 %%\\r" >&2; shift 2; "$@"; exit 3')
    result = run(core_via(server, client, become=True, python=f"env {sys.executable}"))
    assert status_and_error(result) == ("ok", None)
    missing = core_via(server, client, become=True, source="/nonexistent/core")
    assert failure(missing)[:2] == ("unreachable", "FileNotFoundError")
    # Without a frame, what counts is that the collector has begun.
    hung = core_via(server, client, become=True, python=f"env {sys.executable}")
    make('printf "50 %%\\r" >&2; shift 2; "$@" >/dev/null; exit 3')
    assert failure(hung)[0] == "bad_output"


def test_once_the_collector_runs_no_word_is_sudos(sudo, client):
    server, make = sudo
    make('echo "sudo: a password is required" >&2; shift 2; exec "$@"')
    assert status_and_error(run(core_via(server, client, become=True))) == ("ok", None)
    broken = core_via(server, client, become=True, source="/nonexistent/core")
    assert failure(broken)[:2] == ("unreachable", "FileNotFoundError")
