"""Failures, and what the words of ssh, of sudo and of the host's shell stand for."""

import re
import shlex
import signal
from typing import Any

STDERR_SEPARATOR = "; stderr: "
"""Separates an error of ours from the line of stderr that it quotes, which is untrusted and may hold any name."""
CRASHES = {signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGKILL, signal.SIGSEGV, signal.SIGSYS}
"""Signals that kill a collector. An exit code of 128 + any other signal comes from ssh or the host's shell."""

_MAX_QUOTE_CHARACTERS = 300  # of stderr in an error, of which the runner keeps 500

# Stands for an empty stderr.
_EMPTY_STDERR = "Connection closed by the host"
# A connection that ended before the login.
_CLOSED = "exchange_identification|Connection (closed|reset) by|banner exchange"
# Pattern in ssh's stderr, status, error_type and explanation; the first match counts. Status None: retry.
_SSH_ERRORS = (
    (r"REMOTE HOST IDENTIFICATION HAS CHANGED", "denied", "HostKeyChanged",
     "the host key is not the one in known_hosts: find out why, then ssh-keygen -R and ssh-keyscan"),
    (r"Host key verification failed|host key is known for", "denied", "HostKeyUnknown",
     "add the host key to known_hosts, with ssh-keyscan, and check its fingerprint"),
    (r"@.*: Permission denied \(|Too many authentication failures|No more authentication methods", "denied",
     "AuthenticationFailed",
     "no key of this account is accepted there: check authorized_keys, the agent and the user name"),
    (r"open failed: administratively prohibited", "denied", "ForwardingRefused",
     "the jump host forwards no connection to it: AllowTcpForwarding and PermitOpen in its sshd_config"),
    (r"Could not resolve hostname|open failed: .*(Name or service not known|in name resolution)", "unreachable",
     "NameNotResolved", "the resolver does not know the host name"),
    (r"Connection refused", "unreachable", "ConnectionRefused", "nothing listens on its port"),
    (r"No route to host|Network is unreachable", "unreachable", "NoRoute", "there is no route to it"),
    (r"open failed: .*timed out", "unreachable", "ConnectTimeout", "it does not answer the jump host"),
    (r"timed out", "unreachable", "ConnectTimeout",
     "no answer within CONNECT_TIMEOUT_S s (ConnectTimeout; set it in ssh's configuration for this host)"),
    (r"[Cc]onfiguration option|config file|Bad owner|argument|keyword", "unreachable", "ConfigError",
     "ssh rejects its configuration"),
    (r"Exceeded MaxStartups", None, "ConnectionClosed",
     "sshd takes no more connections at a time: raise MaxStartups in sshd_config or lower --ssh-parallel"),
    (r"Not allowed at this time", None, "ConnectionRejected",
     "sshd has too many connections at a time (raise MaxStartups or lower --ssh-parallel), or locks out this address "
     "after failed logins (PerSourcePenalties): see its log"),
    (_EMPTY_STDERR, None, "ConnectionClosed",
     "closed during the login: the account may be expired or locked there, or sshd has too many connections at a time "
     "(raise MaxStartups in sshd_config or lower --ssh-parallel): see its log"),
    (_CLOSED, None, "ConnectionClosed",
     "perhaps too many connections at a time (raise MaxStartups in sshd_config or lower --ssh-parallel), or a lock-out "
     "of this address after failed logins (PerSourcePenalties, fail2ban): see sshd's log"),
)  # fmt: skip
# What ssh prints last where a connection ends after the login.
_LOST = re.compile(
    r"^(Connection to \S+ closed by remote host\.|Read from remote host .*|Timeout, server .*|client_loop: .*)\s*\Z",
    re.MULTILINE,
)
# What a proxied ssh prints last when its proxy has ended: an error before it is the proxy's.
_PROXY_ENDED = re.compile("exchange_identification: (read: )?Connection")
_PYTHON_ERRORS = re.compile("Fatal Python error|Python path configuration|Traceback \\(most recent")
_SUDO_EXIT_CODE = 1  # of sudo, sudo-rs and doas for errors of their own
# Pattern in the stderr of sudo, sudo-rs or doas, and the remedy, with the user's name and the interpreter's path.
_SUDO_REMEDIES = (
    (r"must have a tty", "add the line Defaults:{user} !requiretty to the host's sudoers"),
    (r"expired|validation failure|account management", "the account {user} is expired or locked there"),
    (r"no new privileges|nosuid|effective uid|setuid bit",
     "sudo cannot become root there: a container without new privileges, or a file system mounted nosuid"),
    (r"password|[Aa]uthenticat|[Ii]nteraction is required|not allowed to|may not run|not in the sudoers|I'm afraid",
     "add the line {user} ALL=(root) NOPASSWD: {interpreter} to the host's sudoers"),
    (r"sudo: not found", "sudo is not installed on the host: log in as root"),
)  # fmt: skip
_OTHER_REFUSAL = ("NotSent", "the host refuses the Python of --ship-python")
# Reasons of the host's shell (transports/payload.py) against the Python that would be sent: error_type and explanation.
_REFUSALS = {
    "tool": ("NoTool", "the host has no Python, and no {name} to unpack one"),
    "arch": ("OtherArchitecture", "the host has no Python; it is {name}, and --ship-python has {python}"),
    "loader": ("OtherLibrary", "the host has no Python, and no {loader} for that of --ship-python (musl, 32 bits?)"),
    "place": ("NoRoom", "the host has no Python; none of TMPDIR or /tmp, /var/tmp, /dev/shm, /run and the home folder "
              "has {mib} MiB for one, is writable and not noexec"),
    "unpacking": ("NotUnpacked", "the Python of --ship-python cannot be unpacked on the host"),
    "start": ("NotStarted", "{python} of --ship-python does not start on the host"),
}  # fmt: skip
_QUOTED_REFUSALS = ("unpacking", "start")  # those that other programs on the host explain
# A tool or a machine of uname -m. The host's other words stand behind STDERR_SEPARATOR.
_NAME = re.compile(r"\w{1,32}", re.ASCII)


class SessionError(Exception):
    """The reason for a missing snapshot.

    :param status: a status of the collector, or None if a retry may succeed.
    :param is_of_proxy: whether the jump host, or what else ProxyCommand connects through, has failed.
    """

    def __init__(self, status: str | None, error_type: str, text: str, is_of_proxy: bool = False) -> None:
        super().__init__(text)
        self.status = status
        self.error_type = error_type
        self.is_of_proxy = is_of_proxy


def is_lost(stderr_text: str) -> bool:
    """Whether ssh says that the connection has ended after the login."""
    return _LOST.search(stderr_text) is not None


def of_ssh(stderr_text: str, proxy: str | None, is_through_ssh: bool, connect_timeout_s: int) -> SessionError:
    """Return the failure that ssh's stderr stands for.

    :param proxy: as of `Client`, or None if the host has answered: from then on it can put any words there.
    :param is_through_ssh: as of `Client`; of another proxy the words are unknown, but ssh's own come last.
    """
    # With LogLevel=ERROR ssh prints nothing when the connection is closed during the key exchange or the login.
    stderr_text = stderr_text.strip() or _EMPTY_STDERR
    for pattern, status, error_type, explanation in _SSH_ERRORS:
        match = re.search(pattern, stderr_text)
        if match is not None:
            if pattern == _CLOSED and proxy and not is_through_ssh and "\n" in stderr_text[: match.start()]:
                text = f"{proxy} ended before the login{quote(stderr_text)}"
                return SessionError("unreachable", "ProxyFailed", text, is_of_proxy=True)
            explanation = explanation.replace("CONNECT_TIMEOUT_S", str(connect_timeout_s))
            has_proxy_ended = proxy is not None and _PROXY_ENDED.search(stderr_text, match.end()) is not None
            is_of_proxy = has_proxy_ended and "open failed" not in stderr_text
            if is_of_proxy:
                explanation = f"{'by' if status == 'denied' else 'at'} {proxy}: {explanation}"
            return SessionError(status, error_type, explanation + quote(stderr_text), is_of_proxy)
    return SessionError("unreachable", "SshFailed", f"ssh made no connection{quote(stderr_text)}")


def of_package(package: Any, word: str, detail: str, stderr_text: str) -> SessionError:
    """Return the failure that a reason of the host's shell against a package stands for."""
    error_type, explanation = _REFUSALS.get(word, _OTHER_REFUSAL)
    if "{name}" in explanation and not _NAME.fullmatch(detail):
        error_type, explanation = _OTHER_REFUSAL
    values = {"python": package["python"], "loader": package["loader"], "mib": package["disk_bytes"] >> 20}
    text = explanation.format(name=detail, **values)
    words = f"{'' if '{name}' in explanation else detail}\n{stderr_text if word in _QUOTED_REFUSALS else ''}"
    return SessionError("no_drgn", error_type, text + quote(words))


def of_sudo(
    code: int, stderr_text: str, user: str, python: str | None, interpreter: str | None, rule: str | None
) -> SessionError:
    """Return the failure of a sudo that did not run the collector, whatever it says.

    :param python: the command of the target that starts Python, or None.
    :param interpreter: path of its program.
    :param rule: the command for a rule in sudoers.
    """
    words = shlex.split(python or "")
    programs = f"sudo or {words[0]}" if len(words) > 1 else "sudo"
    text = f"{programs} did not run the collector"
    if len(words) > 1:
        text += f" (exit code {code})"
    if code - 128 in CRASHES:
        text = f"sudo or {interpreter} was ended by {signal.Signals(code - 128).name}"
    if _PYTHON_ERRORS.search(stderr_text):
        text += "; Python has started and failed"
    elif len(words) <= 1 or code == _SUDO_EXIT_CODE:
        remedies = (remedy for pattern, remedy in _SUDO_REMEDIES if re.search(pattern, stderr_text))
        if remedy := next(remedies, None):
            text += "; " + remedy.format(user=user, interpreter=rule)
    return SessionError("denied", "Sudo", text + (quote(stderr_text) or f" (exit code {code}, without a word)"))


def quote(stderr_text: str) -> str:
    """Return the lines of stderr as the suffix of an error, or nothing if there are none.

    Of many the last: the banner of a login comes first, and why the program ended last.
    """
    lines = (line.strip("@ \t\r") for line in stderr_text.splitlines())
    quote = " / ".join(line for line in lines if line)
    if len(quote) > _MAX_QUOTE_CHARACTERS:
        quote = "... " + quote[-_MAX_QUOTE_CHARACTERS:]
    return quote and STDERR_SEPARATOR + quote
