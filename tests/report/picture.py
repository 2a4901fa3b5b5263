"""The picture of the HTML report in README.md: `python -m tests.report.picture` takes it again.

It shows the report on the README's example fleet.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "docs" / "report.png"
FLEET = """\
target,name,labels.rack
tests/vmcores/bytedance/vmcore,web1,r1
tests/vmcores/deb510-n4/vmcore,web2,r1
tests/vmcores/deb61-n2/vmcore,db1,r2
README.md,db2,r2
"""
# Keeps Chromium from looking for updates and the like.
_OFFLINE = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


class NoBrowserError(Exception):
    """playwright or Chromium is missing; the message says which."""


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """Start Debian's Chromium, which fetches nothing by itself.

    :raises NoBrowserError:
    """
    try:
        from playwright import sync_api
    except ImportError as error:
        raise NoBrowserError("needs playwright: pip install '.[browser]'") from error
    path = shutil.which("chromium")
    if path is None:
        raise NoBrowserError("needs Debian's chromium")
    with (
        sync_api.sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=path, args=[*_OFFLINE]) as browser,
    ):
        yield browser


def take(browser: Any, folder: Path) -> bytes:
    """Audit the fleet in an empty folder and return the top of its report as a PNG."""
    for name in ("README.md", "tests"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "fleet.csv").write_text(FLEET)
    env = {name: text for name, text in os.environ.items() if not name.startswith(("LRU_AUDIT_", "RAY_"))}
    env["PYTHONPATH"] = str(ROOT)
    for arguments in ("run -i fleet.csv --quiet", "report -o waste.html"):
        command = [sys.executable, "-m", "pipeline", *arguments.split()]
        subprocess.run(command, cwd=folder, env=env, stdout=subprocess.DEVNULL, check=False)
    viewport = {"width": 1320, "height": 1010}
    # Scaled, so that the file stays small.
    context = browser.new_context(viewport=viewport, device_scale_factor=0.8, color_scheme="light")
    page = context.new_page()
    page.goto((folder / "waste.html").as_uri())
    picture: bytes = page.screenshot()
    context.close()
    return picture


if __name__ == "__main__":
    with chromium() as browser, tempfile.TemporaryDirectory() as folder:
        PICTURE.write_bytes(take(browser, Path(folder)))
