"""Build the wheel and the sdist of a commit: the same bytes wherever setuptools is the locked one and zlib the same.

``python -m tests.dist`` builds the last commit into dist/.
"""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]

_BUILD = """
import sys
from setuptools import build_meta
folder = sys.argv[1]  # the build replaces sys.argv
build_meta.build_wheel(folder)
build_meta.build_sdist(folder)
"""


def build(source: Path, folder: Path, epoch_s: int) -> list[Path]:
    """Build a source tree into a folder, with all times at ``epoch_s``. Modes in the tree become 0644 and 0755."""
    for path in source.rglob("*"):
        path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch_s)}
    command = [sys.executable, "-c", _BUILD, str(folder.absolute())]
    subprocess.run(command, cwd=source, env=environment, umask=0o022, stdout=subprocess.DEVNULL, check=True)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    _normalize(sdist, epoch_s)
    return [wheel, sdist]


def _normalize(sdist: Path, epoch_s: int) -> None:
    """Rewrite an sdist without its builder's times, owners and order: setuptools ignores SOURCE_DATE_EPOCH there."""
    content = io.BytesIO()
    with tarfile.open(sdist) as old, tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as new:
        for member in sorted(old.getmembers(), key=lambda member: member.name):
            member.mtime, member.pax_headers = epoch_s, {}
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            new.addfile(member, old.extractfile(member) if member.isfile() else None)
    with sdist.open("wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=epoch_s) as packed:
        packed.write(content.getvalue())


if __name__ == "__main__":
    commit_time = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, check=True, capture_output=True).stdout
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True).stdout
    for stale in [*ROOT.glob("dist/*.whl"), *ROOT.glob("dist/*.tar.gz")]:
        stale.unlink()
    with tempfile.TemporaryDirectory() as scratch:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tree:
            tree.extractall(scratch, filter="tar")
        for built in build(Path(scratch), ROOT / "dist", int(commit_time)):
            print(built.relative_to(ROOT))
