"""Arguments of ssh from an inventory: those that say how a host is reached, not those for a person at a terminal."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from pipeline.common.text import quote

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


def select(words: Sequence[str]) -> Iterator[str]:
    """Yield those of ssh's arguments that say how a host is reached; the paths of -F and -i become absolute.

    :raises ValueError: an argument does not go with a command that is supervised; the message is the reason.
    """
    remaining = iter(words)
    for word in remaining:
        if not word.startswith("-") or word in ("-", "--"):
            raise ValueError(f"{quote(word)} is not an option of ssh")
        for position, option in enumerate(word[1:], 2):
            if option in _VALUED + _IDLE_VALUED:
                value = word[position:] or next(remaining, "")
                if not value:
                    raise ValueError(f"ssh's option -{option} has no value")
                yield from _valued(option, value)
                break
            if option in _FLAGS:
                yield f"-{option}"
            elif option not in _IDLE_FLAGS:
                raise ValueError(f"ssh's option {quote(f'-{option}')} does not go with a collector")


def _valued(option: str, value: str) -> Iterator[str]:
    if option == "o":
        keyword = next(iter(value.replace("=", " ", 1).split()), "")
        if not keyword.isalnum() or keyword.lower() in _REFUSED_KEYWORDS:
            raise ValueError(f"ssh's option {quote(value)} does not go with a collector")
        if keyword.lower() not in _IDLE_KEYWORDS:
            yield f"-o{value}"
    elif option in _VALUED:
        yield from (f"-{option}", absolute(value) if option in "Fi" else value)


def absolute(path: str) -> str:
    """Return the path of a file, relative to the current directory; what starts with ~ or % is for ssh to replace."""
    return path if path.startswith(("~", "%")) or path == "none" else os.path.abspath(path)
