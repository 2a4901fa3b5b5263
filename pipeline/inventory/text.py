"""Text that a stranger chose, made fit for one line of output."""

from __future__ import annotations

from pipeline.common.text import printable


def quote(value: object) -> str:
    """Return a value as it is shown in an error message: quoted, printable, at most 200 characters."""
    text = f"'{printable(value)}'" if isinstance(value, str) else repr(value)
    return text if len(text) <= 200 else text[:196] + " ..."
