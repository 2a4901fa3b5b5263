"""Text for people: sizes in bytes, written and parsed, and untrusted text made safe for one line of a terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?(?:([KMGTP])(I?))?B?", re.ASCII | re.IGNORECASE)


def printable(text: str) -> str:
    r"""Return the text as one line, with unprintable characters backslash-escaped.

    These are control characters, line ends, bidirectional and other format characters, and bytes that are not UTF-8
    (as ``\udcXX``).
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def printable_names(names: Sequence[str]) -> list[str]:
    """Return names printable, and different where they differ: if need be with their own backslashes doubled."""
    result = [printable(name) for name in names]
    if len(set(result)) == len(set(names)):
        return result
    return [printable(name.replace("\\", "\\\\")) for name in names]


def escape_surrogates(value: Any) -> Any:
    """Backslash-escape surrogates, Python's form of paths that are not UTF-8, in text or in a map of text to text."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {escape_surrogates(key): escape_surrogates(text) for key, text in value.items()}
    return value


def joined_lines(text: str, max_characters: int = 500, keep_end: bool = False) -> str:
    """Return what another program says as one printable line.

    :param keep_end: whether to cut a longer text at its start: messages begin with the cause, but what a program has
        printed until it failed, such as a traceback, ends with it.
    """
    text = printable(" ".join(text.split()))
    if len(text) <= max_characters:
        return text
    return "... " + text[4 - max_characters :] if keep_end else text[: max_characters - 4] + " ..."


def quote(value: object) -> str:
    """Return a value for an error message: quoted, printable, at most 200 characters."""
    text = f"'{printable(value)}'" if isinstance(value, str) else repr(value)
    return text if len(text) <= 200 else text[:196] + " ..."


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, such as ``1 host`` or ``2,000 hosts``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def human_bytes(count: int) -> str:
    """Return a size in three digits and a binary unit, at most 8 characters and a sign: `7.44 GiB`, `-512 B`."""
    size = float(abs(count))
    unit = 0
    while size >= 999.5:
        size /= 1024
        unit += 1
    digits = 0 if unit == 0 or size >= 99.95 else 1 if size >= 9.995 else 2
    return f"{'-' if count < 0 else ''}{size:.{digits}f} {('B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB', 'EiB')[unit]}"


def human_error(count: int | None) -> str:
    """Return the half width of an interval of bytes, to follow its middle, or nothing without one: ` ± 12.0 KiB`."""
    return "" if count is None else f" ± {human_bytes(count)}"


def parse_bytes(text: str) -> float:
    """Return a written size in bytes: `4GiB` is 4 * 2^30, `4GB` and `4G` are 4 * 10^9, `4` is 4.

    :raises ValueError: the text is not a size; the message is one line.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"invalid size {text!a}; expected something like 512MiB or 4GB")
    number, unit, binary = match.groups()
    return float(number) * (1024 if binary else 1000) ** " KMGTP".index((unit or " ").upper())
