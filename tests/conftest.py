"""Process state that every test restores, a Ray for all tests of a process, and what skipped tests need."""

from __future__ import annotations

import collections
import os
import signal
from collections.abc import Iterator
from unittest import mock

import pytest

from pipeline.fanout import cluster
from tests import campaign

os.environ.pop("COLUMNS", None)  # a width for reports, which readline sets for the workers of pytest-xdist

# What to do about the needs of skipped tests, which skip with "needs NAME".
REMEDIES = {
    **{f"Python {version}": f"pyenv install {version}" for version in ("3.6", "3.7", "3.8", "3.11")},
    **{shell: f"apt-get install {shell}" for shell in ("fish", "tcsh", "zsh")},
    **dict.fromkeys(("datafusion", "pandas", "polars"), "pip install -e .[readers]"),
    "atheris": "pip install -e .[faults]",
    "busybox": "apt-get install busybox",
    "Debian's python3": "apt-get install python3",
    "gcc": "apt-get install gcc",
    "iproute2": "apt-get install iproute2",
    "FUSE": "run as root with /dev/fuse; apt-get install fuse3; pip install -e .[faults]",
    "Landlock": "a kernel with CONFIG_SECURITY_LANDLOCK",
    "a memory cgroup": "run as root, with the memory controller at the root of the cgroups",
    "mount namespaces": "run as root",
    "network": "access to a package index",
    "promtool": "sh tests/lab/install-tools.sh",
    "root": "run as root",
    "sshd": "apt-get install openssh-server",
    "sudo": "apt-get install sudo",
    "systemd-analyze": "apt-get install systemd",
    "valgrind": "apt-get install valgrind",
}


def pytest_report_header() -> str:
    return f"TEST_SEED={campaign.SEED} TEST_FULL={campaign.IS_FULL:d}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many tests were skipped for want of what, and the remedy."""
    reports = terminalreporter.stats.get("skipped", [])
    reasons = collections.Counter(report.longrepr[2].removeprefix("Skipped: ") for report in reports)
    for reason, count in reasons.most_common():
        remedy = REMEDIES.get(reason.removeprefix("needs "))
        terminalreporter.write_line(f"{count} skipped: {reason}" + (f" ({remedy})" if remedy else ""))


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """Restore the signal handlers: after an interrupt `cli.main` ignores signals, and child processes inherit that."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def embedded_ray() -> Iterator[dict[str, str]]:
    """An embedded Ray with two CPUs, which commands run in this process use instead of one of their own.

    Its value is the environment of a driver in another process that joins it. Ray's variables are not left in the
    environment of this process, because other tests start children.
    """
    environment = dict(os.environ)
    with cluster.connection(2):
        import ray

        address = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
        token = {name: os.environ[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}
        with mock.patch.dict(os.environ, environment, clear=True):
            yield address | token
