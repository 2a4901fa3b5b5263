"""Files of a warehouse, which others may have replaced by links, pipes and devices, or filled with anything.

The two functions that open files are for the parameter `opener` of open().
"""

from __future__ import annotations

import errno
import json
import os
import stat
from typing import IO, Any

# A manifest or run.json takes some KiB, whatever the number of targets.
_MAX_JSON_BYTES = 1 << 20


def open_regular(path: str, flags: int) -> int:
    """Open a regular file, through symbolic links too, without waiting for a writer of a pipe.

    :raises OSError: it is no regular file.
    """
    descriptor = os.open(path, flags | os.O_NONBLOCK, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("not a regular file; remove it")
    return descriptor


def open_own(path: str, flags: int) -> int:
    """Open a regular file that has one name only, since writing to a link would change a file elsewhere.

    :raises OSError: it is no such file.
    """
    try:
        descriptor = open_regular(path, flags | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError("a symbolic link; remove it") from error
        raise
    if os.fstat(descriptor).st_nlink > 1:
        os.close(descriptor)
        raise OSError("has another name, as a hard link; remove it")
    return descriptor


def read_json(file: IO[bytes]) -> dict[str, Any]:
    """Return the JSON object in a small file.

    :raises ValueError: it is too large or nested too deeply, has a key twice, or is no object.
    """
    data = file.read(_MAX_JSON_BYTES + 1)
    if len(data) > _MAX_JSON_BYTES:
        raise ValueError(f"larger than {_MAX_JSON_BYTES} bytes")
    try:
        content = json.loads(data, object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    return content


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a key occurs twice")
    return result
