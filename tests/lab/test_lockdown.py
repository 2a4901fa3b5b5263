"""A live audit of a kernel that denies its memory to root too: status denied, with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.fanout.runner import frame
from pipeline.fanout.runner.frame import Failure
from tests.lab import kernels, scripted
from tests.lab.shapes import SHAPES

pytestmark = pytest.mark.lab

AUDIT = """
mount -t securityfs securityfs /sys/kernel/security
cat /sys/kernel/security/lockdown
id -u
python -m pipeline.collector live: || true
"""


def test_a_locked_down_kernel_is_denied_to_root_and_says_what_forbids_it(tmp_path: Path) -> None:
    shape, kernel = SHAPES["deb510-n1"], kernels.debian_kernel("5.10")
    _, output = scripted.take_core(shape, kernel, tmp_path, AUDIT, "lockdown=confidentiality", collector=True)
    lockdown, user, _, audit = output.split("\n", 3)
    assert (lockdown, user) == ("none integrity [confidentiality]", "0")
    failure = frame.parse(audit.encode())
    assert isinstance(failure, Failure)
    assert (failure.status, failure.error_type) == ("denied", "PermissionError")
    assert failure.error.startswith("live: /proc/kcore: ")
    assert "lockdown=confidentiality forbids it even to root" in failure.error
