"""/proc/kcore as containers, systemd and users without privileges find it: denied, with the remedy that fits.

The files are in a /proc of the test's own, in a mount namespace. tests/lab/test_kcore.py has a kernel's own.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.fanout.runner import frame

PRIVILEGED = "run it on the host, or in a container with --privileged (Kubernetes: securityContext.privileged: true)"
MASKED = f"/proc/kcore is masked by %s: in a systemd service set ProtectKernelTunables=no, else {PRIVILEGED}"
FORBIDDEN = "echo > /proc/kcore; chown 1 /proc/kcore; chmod 400 /proc/kcore"
OWN_PROC = 'mount --rbind /proc "$1"; mount -t tmpfs none /proc; ln -s "$1"/* /proc; rm -f /proc/kcore'


def audit(folder: Path, prepare: str, *wrapper: str) -> frame.Failure:
    """Run the collector in a mount namespace in which a script has changed /proc."""
    if not shutil.which("unshare"):
        pytest.skip("needs mount namespaces")
    script = f'set -e; {prepare}; shift; exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", script, "-", str(folder), *wrapper]
    command += [sys.executable, "-m", "pipeline.collector", "live:"]
    process = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, timeout=60)
    if b"unshare: " in process.stderr or b"mount: " in process.stderr:
        pytest.skip("needs mount namespaces")
    failure = frame.parse(process.stdout)
    assert isinstance(failure, frame.Failure), process.stderr
    assert failure.status == "denied"
    return failure


@pytest.mark.parametrize(
    ("make", "cover"),
    [
        ("touch /proc/kcore; mount --bind /dev/null /proc/kcore", "/dev/null"),
        (": > /proc/kcore", "an empty file"),
        ("mkdir /proc/kcore", "a directory"),
        ("touch /proc/kcore; mount --bind /dev/zero /proc/kcore", "a device"),
        ("head -c 8192 /dev/zero > /proc/kcore", "a file that is not the kernel's memory"),
    ],
)
def test_another_file_over_it_is_a_mask(tmp_path: Path, make: str, cover: str) -> None:
    failure = audit(tmp_path, f"{OWN_PROC}; {make}")
    assert failure == frame.Failure("denied", "Masked", f"live: {MASKED % cover}")


def test_one_that_is_missing_says_whether_the_kernel_or_the_mount_lacks_it(tmp_path: Path) -> None:
    reason = "this kernel has no CONFIG_PROC_KCORE, or is an imitation of Linux (gVisor, WSL 1)"
    failure = frame.Failure("denied", "FileNotFoundError", f"live: /proc/kcore is missing: {reason}")
    assert audit(tmp_path, OWN_PROC) == failure
    assert "not mounted there, or only with its processes" in audit(tmp_path, "mount -t tmpfs none /proc").error
    assert "only with its processes" in audit(tmp_path, "mount -t proc -o subset=pid none /proc").error


@pytest.mark.parametrize(
    ("wrapper", "reason"),
    [
        (("setpriv", "--reuid=65534"), "run as root (over ssh: log in as root, or set become: true for sudo)"),
        (
            ("setpriv", "--bounding-set=-sys_rawio,-dac_override,-dac_read_search"),
            f"this root lacks CAP_SYS_RAWIO; {PRIVILEGED}",
        ),
        (
            ("unshare", "--user", "--map-root-user"),
            f"this root is that of a user namespace (an unprivileged container), not of the host; {PRIVILEGED}",
        ),
        (
            ("setpriv", "--bounding-set=-dac_override,-dac_read_search"),
            "Permission denied, even to root: by lockdown=confidentiality or a security module (AppArmor, SELinux)",
        ),
    ],
)
def test_a_refusal_names_what_is_missing(tmp_path: Path, wrapper: tuple[str, ...], reason: str) -> None:
    failure = audit(tmp_path, f"{OWN_PROC}; {FORBIDDEN}", *wrapper)
    assert failure == frame.Failure("denied", "PermissionError", f"live: /proc/kcore: {reason}")
