"""The program: reads its stdin, tries to connect until the collector has run, and exits as it did."""

import json
import math
import os
import resource
import sys
import time
from typing import Any, NoReturn

from .client import ERROR_EXIT_CODE, Client
from .connection import Connection
from .denials import Denials
from .failures import CRASHES, SessionError

CONNECTION_LOST_EXIT_CODE = 75
"""Exit code of this program where the connection was lost after the login."""
OUT_OF_MEMORY_EXIT_CODE = 76
"""Exit code of this program where the collector had not enough memory."""

# Seconds between tries, each multiplied by a random factor from 0.5 to 1.5. A login of others that makes sshd drop a
# connection (MaxStartups) ends within seconds; a penalty for failed logins lasts 15 s to 10 min (PerSourcePenalties).
_RETRY_DELAYS_S = (1, 2, 4)
_PENALTY_DELAYS_S = (15, 30, *[60] * 8)
_MAX_DENIALS = 3  # by a jump host, after which no further target knocks there: each denial adds to the penalty
_SHARED_LOGIN_S = 20  # beyond ConnectTimeout, for the login over a connection that another ssh holds


def main() -> None:
    start = time.monotonic()
    header = json.loads(sys.stdin.buffer.readline())
    bootstrap = sys.stdin.buffer.read(header["bootstrap_bytes"])
    sources = sys.stdin.buffer.read()
    memory_bytes, _ = resource.getrlimit(resource.RLIMIT_DATA)
    request = {
        "args": header["collector_args"],
        "sources_bytes": len(sources),
        "memory_bytes": memory_bytes if memory_bytes != resource.RLIM_INFINITY else None,
        "niceness": os.nice(0),
        "ship_drgn": header["drgn_wheels"] is not None,
    }
    payload = bootstrap + repr(request).encode() + b"\n" + sources
    try:
        code = _collect(header, payload, start + header["timeout_s"])
    except SessionError as failure:
        _fail(failure)
    if code - 128 in CRASHES:
        os.kill(os.getpid(), code - 128)
    sys.exit(code)


def _collect(header: dict[str, Any], payload: bytes, deadline: float) -> int:
    """Run the collector on the host; return its exit code, or one of those above.

    :param deadline: when the runner ends this process, of time.monotonic().
    :raises SessionError: the collector cannot run.
    """
    client = Client(header["host"], header["options"], header["config"])
    denials = Denials(header["denials"])
    share, tries = client.shares_connection, 0
    while True:
        if client.jump and (count := denials.count(client.jump)) >= _MAX_DENIALS:
            text = f"not tried: no key of this account is accepted by {client.proxy}, as {count} others through it"
            raise SessionError("denied", "AuthenticationFailed", text)
        try:
            login_timeout_s = client.connect_timeout_s + _SHARED_LOGIN_S if share else None
            connection = Connection(header, client, payload, share, login_timeout_s)
            code = connection.forward()
            connection.check(code)
            if code == ERROR_EXIT_CODE:
                return CONNECTION_LOST_EXIT_CODE
            if code and connection.is_out_of_memory:
                return OUT_OF_MEMORY_EXIT_CODE
            return 1 if code in (CONNECTION_LOST_EXIT_CODE, OUT_OF_MEMORY_EXIT_CODE) else code
        except SessionError as failure:
            if share and failure.error_type == "ConnectTimeout":
                share = False  # perhaps the master is stuck, or the network that its connection came through
                continue
            if client.jump and failure.is_of_proxy and failure.error_type == "AuthenticationFailed":
                denials.add(client.jump)
            if failure.status is not None:
                raise
            import random

            tries += 1
            delays_s = _delays_s(failure, client.jump is not None and denials.are_at(client.jump))
            delay_s = delays_s[tries - 1] * random.uniform(0.5, 1.5) if tries <= len(delays_s) else math.inf
            # A try that the deadline may cut short says less than the reason of the last one.
            if time.monotonic() + delay_s >= deadline - client.connect_timeout_s:
                text = f"closed in each of {tries} tries; {failure}"
                raise SessionError("unreachable", failure.error_type, text) from failure
            print(f"{failure.error_type}; tried again in {delay_s:.0f} s", file=sys.stderr, flush=True)
            time.sleep(delay_s)


def _delays_s(failure: SessionError, has_jump_denied: bool) -> tuple[int, ...]:
    """Return the seconds to wait after each try that ends with this failure.

    :param has_jump_denied: whether the jump host has denied others, so that it may have locked out this address.
    """
    if has_jump_denied:
        return _PENALTY_DELAYS_S
    return _RETRY_DELAYS_S + (_PENALTY_DELAYS_S if failure.error_type == "ConnectionRejected" else ())


def _fail(failure: SessionError) -> NoReturn:
    """Print the failure as a frame, as the collector does, and exit."""
    error = {"status": failure.status or "unreachable", "error_type": failure.error_type, "error": str(failure)}
    print("\nlist-lru-audit snapshot 1")
    print(json.dumps({"error": error}), flush=True)
    os._exit(1)  # immediately, without waiting for ssh and the threads
