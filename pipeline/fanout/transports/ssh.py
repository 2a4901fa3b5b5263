"""Transport over ssh: audits the kernel of a host, or a core or QEMU guest on that host.

Keys, jump hosts, timeouts and the host key policy come from the OpenSSH configuration of the account that runs the
audit. Nothing is installed on the host: the collector is sent over stdin and stays in memory.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import replace

from pipeline.collector.status import OUT_OF_MEMORY
from pipeline.common.errors import AuditError
from pipeline.fanout.transports import payload, session, standalone
from pipeline.fanout.transports.command import Command, TargetError, arguments
from pipeline.inventory import Target, destination

# Starts the session without the project. This folder comes last: no file here can hide one of the standard library.
_SESSION = "import sys; sys.path.append(sys.argv[1]); from session.main import main; main()"


class ClientError(AuditError):
    """ssh cannot run on this machine, whatever the host."""


def command(target: Target) -> Command:
    """Return the command that audits a target over ssh.

    :raises TargetError: the destination or an option is invalid, so that ssh might take it for something else, or
        the file of ship_python is not a CPython that can be sent.
    """
    try:
        package = None if target.ship_python is None else standalone.package(target.ship_python)
    except standalone.StandaloneError as error:
        raise TargetError(f"cannot send Python: {error}") from error
    host, options, config = client_arguments(target)
    remote_target = replace(target, source="live:") if target.kind == "ssh" else target
    header = {
        "host": host,
        "options": options,
        "config": config,
        "command_line": payload.command_line(target.python, target.become, package),
        "collector_args": arguments(remote_target),
        "start_marker": payload.START_MARKER,
        "announcement": payload.ANNOUNCEMENT,
        "out_of_memory": OUT_OF_MEMORY,
        "bootstrap_bytes": len(payload.bootstrap()),
        "become": target.become,
        "python": target.python,
        "drgn_wheels": target.drgn_wheels,
        "package": None if package is None else _package_header(package),
        "timeout_s": target.timeout_s,
        "denials": _denials(),
    }
    stdin = json.dumps(header).encode() + b"\n" + payload.bootstrap() + payload.sources()
    # -B: this process has compiled the session already, if it may.
    program = [sys.executable, "-IBS", "-c", _SESSION]
    return Command([os.path.dirname(__file__)], program, stdin=stdin, host=host)


def _package_header(package: standalone.Package) -> dict[str, object]:
    """Return what the session needs to know of the Python that it may send."""
    return {
        "path": package.path,
        "ask_marker": payload.ASK_MARKER,
        "refusal_marker": payload.REFUSAL_MARKER,
        "python": f"Python {package.build.version} for {package.build.arch}",
        "loader": package.build.loader,
        "disk_bytes": package.disk_bytes + payload.DRGN_BYTES,
    }


def check_client(targets: Iterable[Target], config: str | None = None) -> None:
    """Check that ssh can run here and takes its configuration, with the first target of each configuration file.

    A file that only some targets name, or that ssh does not read in time for one host, is left to their statuses.

    :param config: path of the configuration file for all targets without their own, or None for the account's.
    :raises ClientError: it does not; with the reason.
    """
    hosts_by_config: dict[str | None, str] = {}
    for target in targets:
        with contextlib.suppress(TargetError):  # becomes the status of that target
            host, _, file = client_arguments(target)
            hosts_by_config.setdefault(file, host)
    for file, host in hosts_by_config.items():
        try:
            session.settings(host, [], file, is_apart=True)
        except session.SessionError as error:
            if error.status == "denied" or (error.error_type == "ConfigError" and file in (None, config)):
                raise ClientError(str(error)) from error


def client_arguments(target: Target) -> tuple[str, list[str], str | None]:
    """Return the host, ssh's options without its configuration file, and that file.

    :raises TargetError: the destination is invalid.
    """
    try:
        account = destination.parse((target.via or target.source).removeprefix("ssh:"))
    except ValueError as error:
        raise TargetError(str(error)) from error
    options = ["-p", str(account.port)] if account.port is not None else []
    options += ["-l", account.user] if account.user is not None else []
    return account.host, [*options, *target.ssh_args], target.ssh_config


@functools.cache
def _denials() -> str:
    """Return the path of the file in which the sessions of this process count denials; it goes with the process."""
    return f"/proc/{os.getpid()}/fd/{os.memfd_create('denials')}"
