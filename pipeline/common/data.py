"""The one resolver of the data folders `sql/` and `schemas/`: in a checkout, an editable install and a wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def path(folder: str) -> Path:
    """Return the directory that holds a data folder.

    :param folder: ``sql`` or ``schemas``.

    In a wheel setup.cfg ships the folder inside the package (``pipeline/sql``); in a checkout and an editable
    install it lies beside the package.
    """
    shipped = _PACKAGE / folder
    return shipped if shipped.is_dir() else _PACKAGE.parent / folder
