"""Arguments of ssh from an inventory: those that say how a host is reached, not those for a person at a terminal.

They may contain passwords, as a ProxyCommand with sshpass does: no error quotes a value.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from pipeline.common.text import quote
from pipeline.inventory import destination

# Options of ssh(1) that say how a host is reached: without a value, and with one.
_FLAGS = "46CKk"
_VALUED = "BbcFIiJlmoPp"
# Options that do not: what ssh prints, terminals, forwarding, sharing of connections. The transport decides on those.
_IDLE_FLAGS = "2AaMqTtvXxYyg"
_IDLE_VALUED = "DEeLRS"
# Likewise of ssh_config(5), in lower case.
_IDLE_KEYWORDS = {
    *("batchmode", "escapechar", "loglevel", "logverbose", "requesttty"),
    *("controlmaster", "controlpath", "controlpersist"),
    *("clearallforwardings", "dynamicforward", "localforward", "remoteforward", "exitonforwardfailure"),
    *("forwardagent", "forwardx11", "forwardx11timeout", "forwardx11trusted", "tunnel", "tunneldevice"),
}
# These replace or end the command that ssh runs, or limit the options behind them to some hosts.
_REFUSED_KEYWORDS = {
    *("forkafterauthentication", "localcommand", "permitlocalcommand", "remotecommand", "sessiontype", "stdinnull"),
    *("host", "match"),
}
# Their values are files, and relative to the current directory, which is another one where ssh will run.
_FILE_KEYWORDS = {
    *("identityfile", "certificatefile", "identityagent", "userknownhostsfile", "globalknownhostsfile"),
    *("revokedhostkeys", "pkcs11provider", "securitykeyprovider"),
}
# Of these a name without a slash is looked up as a library.
_LIBRARY_KEYWORDS = {"pkcs11provider", "securitykeyprovider"}
# Their values are no secrets: names, addresses, files, algorithms, numbers. Others may be commands with passwords.
_SHOWN_KEYWORDS = _FILE_KEYWORDS | {
    *("proxyjump", "hostname", "hostkeyalias", "addressfamily", "bindaddress", "bindinterface", "ipqos", "compression"),
    *(
        "connecttimeout",
        "connectionattempts",
        "serveraliveinterval",
        "serveralivecountmax",
        "tcpkeepalive",
        "rekeylimit",
    ),
    *("stricthostkeychecking", "checkhostip", "verifyhostkeydns", "updatehostkeys", "hashknownhosts"),
    *("identitiesonly", "preferredauthentications", "pubkeyauthentication", "passwordauthentication"),
    *("kbdinteractiveauthentication", "hostbasedauthentication", "gssapiauthentication", "gssapidelegatecredentials"),
    *("ciphers", "macs", "kexalgorithms", "hostkeyalgorithms", "pubkeyacceptedalgorithms", "pubkeyacceptedkeytypes"),
}


class Option(NamedTuple):
    """An option of ssh(1) with its hyphen, or a keyword of ssh_config(5) without; value: None for a flag."""

    name: str
    value: str | None

    def words(self) -> tuple[str, ...]:
        """Return the option as words for ssh."""
        if self.value is None:
            return (self.name,)
        return (self.name, self.value) if self.name.startswith("-") else (f"-o{self.name}={self.value}",)


class Route(NamedTuple):
    """What options of ssh say: user, port and configuration file, which are fields of a target, and all others."""

    user: str | None
    port: int | None
    config: str | None
    words: tuple[str, ...]


def parse(text: str) -> Iterator[Option]:
    """Yield those options in a text that say how a host is reached; -l and -p as User and Port, and paths absolute.

    :raises ValueError: an option is not valid, or does not go with a command that is supervised.
    """
    words = enumerate(shlex.split(text), 1)
    for number, word in words:
        if not word.isprintable():
            raise ValueError(f"word {number} has unprintable characters")
        if not word.startswith("-") or word in ("-", "--"):
            raise ValueError(f"word {number} is not an option of ssh")
        for position, letter in enumerate(word[1:], 2):
            if letter in _VALUED + _IDLE_VALUED:
                _, value = (0, word[position:]) if word[position:] else next(words, (0, ""))
                if not (value and value.isprintable()):
                    raise ValueError(f"ssh's option -{letter} has no value that is printable")
                yield from _valued(letter, value)
                break
            if letter in _FLAGS:
                yield Option(f"-{letter}", None)
            elif letter not in _IDLE_FLAGS:
                raise ValueError(f"ssh's option {quote(f'-{letter}')} does not go with a collector")


def route(options: Iterable[Option]) -> Route:
    """Return what options in ssh's order say: of several users or ports the first counts, of several -F the last."""
    user = port = config = None
    words: list[str] = []
    for option in options:
        match option:
            case Option("User", str(value)):
                user = user or value
            case Option("Port", str(value)):
                port = port or int(value)
            case Option("-F", value):
                config = value
            case _:
                words += option.words()
    return Route(user, port, config, tuple(words))


def shown(words: Sequence[str]) -> str:
    """Return the words of a route for a screen, without values that may be secret."""
    return shlex.join(_shown(word) for word in words)


def are_shown_whole(words: Sequence[str]) -> bool:
    """Return whether no value among the words of a route may be secret."""
    return all(_shown(word) == word for word in words)


def file_option(keyword: str, text: str) -> Option:
    """Return an option of ssh_config(5) with the paths in a text, made absolute.

    :raises ValueError: a path has a quotation mark, which ssh does not take.
    """
    is_library = keyword.lower() in _LIBRARY_KEYWORDS
    paths = [path if is_library and "/" not in path else absolute(path) for path in shlex.split(text)]
    if any('"' in path for path in paths):
        raise ValueError(f"the path of {keyword} has a quotation mark, which ssh does not take")
    return Option(keyword, " ".join(f'"{path}"' if " " in path else path for path in paths))


def absolute(path: str) -> str:
    """Return a path, relative to the current directory, as absolute; one that starts with ~, % or $ is for ssh."""
    return path if path.startswith(("~", "%", "$")) or path in ("none", "SSH_AUTH_SOCK") else os.path.abspath(path)


def _valued(letter: str, value: str) -> Iterator[Option]:
    match letter:
        case "o":
            yield from _keyword(value)
        case "l":
            yield from _keyword(f"User={value}")
        case "p":
            yield from _keyword(f"Port={value}")
        case "F":  # ssh does not replace ~ in it
            yield Option("-F", value if value == "none" else os.path.abspath(value))
        case "i":
            yield Option("-i", absolute(value))
        case _ if letter in _VALUED:
            yield Option(f"-{letter}", value)


def _keyword(text: str) -> Iterator[Option]:
    parts = re.fullmatch(r"\s*([A-Za-z0-9]+)(?:\s*=\s*|\s+)(.*\S)\s*", text)
    if parts is None:
        raise ValueError("ssh's option -o must be KEYWORD=VALUE")
    keyword, value = parts.groups()
    match keyword.lower():
        case "user":
            yield Option("User", _checked(value.strip('"'), "user", destination.check_user))
        case "port":
            yield Option("Port", _checked(value.strip('"'), "port", destination.check_port))
        case name if name in _REFUSED_KEYWORDS:
            raise ValueError(f"ssh's option {keyword} does not go with a collector")
        case name if name in _FILE_KEYWORDS:
            yield file_option(keyword, value)
        case name if name not in _IDLE_KEYWORDS:
            yield Option(keyword, value)


def _checked(text: str, kind: str, check: Callable[[str], None]) -> str:
    try:
        check(text)
    except ValueError:
        raise ValueError(f"ssh's options name an invalid {kind}") from None
    return text


def _shown(word: str) -> str:
    if not word.startswith("-o"):
        return word
    keyword, _, _ = word.removeprefix("-o").partition("=")
    return word if keyword.lower() in _SHOWN_KEYWORDS else f"-o{keyword}=..."
