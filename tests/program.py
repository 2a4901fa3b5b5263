"""lru-audit run in this process: starting Python and importing takes longer than most commands do."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from pathlib import Path

from pipeline import cli

ROOT = Path(__file__).parents[1]


def run(*args: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a command as `main` of a process would, and return its exit code and output."""
    with tempfile.NamedTemporaryFile("w") as stdout, tempfile.NamedTemporaryFile("w") as stderr:
        with contextlib.chdir(cwd), contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            try:
                code = cli.main([*map(str, args)])
            except SystemExit as exit_:
                code = exit_.code
        for file in (stdout, stderr):
            file.flush()
        output, errors = (Path(file.name).read_text() for file in (stdout, stderr))
    return subprocess.CompletedProcess(args, code, output, errors)
