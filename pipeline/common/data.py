"""Location of the data directories `sql/` and `schemas/` in a checkout, an editable install and a wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def path(name: str) -> Path:
    """Return the path of a data directory.

    :param name: ``sql`` or ``schemas``.

    setup.cfg packs the directory into a wheel inside the package (``pipeline/sql``). In a checkout and an editable
    install it lies beside the package.
    """
    packaged_path = _PACKAGE / name
    return packaged_path if packaged_path.is_dir() else _PACKAGE.parent / name
