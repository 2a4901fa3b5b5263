"""This machine's own Python as one that is sent to hosts without Python, and drgn for it."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from pipeline.fanout.transports import wheels

PYTHON = Path("/usr/bin/python3").resolve()
VERSION = PYTHON.name.removeprefix("python")
ARCH = os.uname().machine


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This machine's own Python as an archive in the form of python-build-standalone."""
    if not (PYTHON.is_file() and Path(f"/usr/lib/python{VERSION}/os.py").is_file()):
        pytest.skip("needs Debian's python3")
    path = tmp_path_factory.mktemp("standalone") / "cpython.tar.gz"
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        tar.add(PYTHON, f"python/bin/python{VERSION}")
        link = tarfile.TarInfo("python/bin/python3")
        link.type, link.linkname = tarfile.SYMTYPE, f"python{VERSION}"
        tar.addfile(link)
        tar.add(f"/usr/lib/python{VERSION}", f"python/lib/python{VERSION}")
        add(tar, f"python/lib/python{VERSION}/site-packages/drgn.py", b"raise Exception('another drgn')")
        add(tar, "python/lib/libtcl8.6.so", b"Tcl")
    return path


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


@pytest.fixture(scope="session")
def drgn_wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    if not wheels.fetch(folder, [VERSION], [ARCH], print):
        pytest.skip("needs network")
    return folder
