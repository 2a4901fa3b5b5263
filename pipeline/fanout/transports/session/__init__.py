"""The child process that audits a host over ssh: sends the collector, forwards its output and explains failures.

The runner starts it with `python -IBS` as a package of its own, named `session`, so it imports nothing of the project,
and its imports of itself are relative. It retries a connection that is closed before the login: sshd drops some of many
simultaneous connections (MaxStartups), and locks out addresses with failed logins (PerSourcePenalties). It does not
retry a connection that is lost after the login, but exits with CONNECTION_LOST_EXIT_CODE: the driver then starts a new
attempt.

It may send a Python first: the host's shell then asks for it on stderr, unpacks it, starts it and removes it.

stdin: a line of JSON, then the bootstrap, then the sources of the collector.
"""

from .client import Client, settings
from .failures import STDERR_SEPARATOR, SessionError
from .main import CONNECTION_LOST_EXIT_CODE, OUT_OF_MEMORY_EXIT_CODE

__all__ = [
    "CONNECTION_LOST_EXIT_CODE",
    "OUT_OF_MEMORY_EXIT_CODE",
    "STDERR_SEPARATOR",
    "Client",
    "SessionError",
    "settings",
]
