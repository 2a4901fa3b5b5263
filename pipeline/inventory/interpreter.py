"""Commands that start a Python, such as ``python3.9`` or ``podman run -i IMAGE python3``: words as in a shell."""

from __future__ import annotations

import os
import shlex

from pipeline.common.text import quote


def parse(text: str, directory: str | None = None) -> str:
    """Return a command in its canonical form, which `shlex.split` splits; nothing in it is expanded.

    :param directory: base of a relative path of the program; None if the command is for another machine.
    :raises ValueError: with the reason.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"python is not a command: {quote(text)} ({str(error).lower()})") from error
    program = words[0] if words else ""
    if not program:
        raise ValueError(f"python is not a command: {quote(text)}")
    if "/" in program and not program.startswith("/"):  # a bare name is looked up in PATH where it runs
        if directory is None:
            raise ValueError(f"expected a name or an absolute path, not {quote(program)}")
        program = os.path.join(directory, program)
    return shlex.join([program, *words[1:]])
