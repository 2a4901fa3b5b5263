"""Destinations of ssh, `[USER@]HOST[:PORT]`, restricted to what is safe on a command line."""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

from pipeline.common.text import quote

# ssh inserts user and host unquoted into commands (ProxyCommand, Match exec) and parses a leading - as an option.
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]*")
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_ADDRESS = re.compile(r"[0-9A-Fa-f:.]+(%[A-Za-z0-9_.-]+)?")


class Destination(NamedTuple):
    """An account on a machine; host: a name, an IPv4 or a bare IPv6 address."""

    host: str
    user: str | None = None
    port: int | None = None

    def __str__(self) -> str:
        """Return `[USER@]HOST[:PORT]`, an IPv6 address in brackets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (f"{self.user}@" if self.user else "") + host + (f":{self.port}" if self.port else "")

    @property
    def name(self) -> str:
        """Default name of a target: the host, with the port if one is given."""
        return str(self._replace(user=None)) if self.port else self.host


def parse(text: str) -> Destination:
    """Return the parts of `[USER@]HOST[:PORT]`.

    :raises ValueError: with the reason in one line.
    """
    user, at_sign, address = text.rpartition("@")
    if address.startswith("["):
        host, bracket, port = address[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            raise ValueError(f"{quote(text)} is not [USER@][ADDRESS][:PORT]")
        colon, port = port[:1], port[1:]
        if not _is_ipv6(host):
            raise ValueError(f"{quote(host)} in brackets is not an IPv6 address")
    else:
        host, colon, port = address.partition(":")
        if ":" in port:
            raise ValueError(f"{quote(address)} has several colons; write an IPv6 address in brackets, as in ssh:[::1]")
        check_host(host)
    if at_sign:
        check_user(user)
    if colon:
        check_port(port)
    return Destination(host, user or None, int(port) if colon else None)


def check_host(host: str) -> None:
    """Check a host name, an IPv4 address or a bare IPv6 address.

    :raises ValueError: with the reason in one line, as the checks below.
    """
    if not (_HOST.fullmatch(host) or _is_ipv6(host)):
        raise ValueError(
            f"invalid host name {quote(host)}; expected letters, digits and . _ - after a letter, digit or _"
        )


def check_user(user: str) -> None:
    if not _USER.fullmatch(user):
        raise ValueError(
            f"invalid user name {quote(user)}; expected letters, digits and . _ @ + - after a letter, digit or _"
        )


def check_port(port: str) -> None:
    if not (re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) < 1 << 16):
        raise ValueError(f"invalid port {quote(port)}; expected a number from 1 to 65535")


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return _ADDRESS.fullmatch(text) is not None
