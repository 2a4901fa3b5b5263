"""Debug info is not asked of a debuginfod server, which the environment of an account may name."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.fanout.runner import frame
from tests.collector.conftest import CORES


def test_no_server_is_asked_for_debug_info_even_if_drgn_would(tmp_path: Path) -> None:
    """A plugin enables what drgn 0.3.0 disables for kernels. The server never answers."""
    plugin = tmp_path / "plugin.py"
    plugin.write_text("def drgn_prog_set(prog): prog.set_enabled_debug_info_finders(['standard', 'debuginfod'])")
    (tmp_path / "debug").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        env = {
            **os.environ,
            "DEBUGINFOD_URLS": f"http://127.0.0.1:{server.getsockname()[1]}",
            "DEBUGINFOD_TIMEOUT": "5",
            "DEBUGINFOD_CACHE_PATH": str(tmp_path / "cache"),
            "DRGN_PLUGINS": f"mine={plugin}",
        }
        command = [sys.executable, "-m", "pipeline.collector", CORES[0].path, "--debug-dir", tmp_path / "debug"]
        process = subprocess.run(command, cwd=Path(__file__).parents[2], env=env, capture_output=True, timeout=120)
        with pytest.raises(BlockingIOError):
            server.accept()
    failure = frame.parse(process.stdout)
    assert isinstance(failure, frame.Failure)
    assert failure.status == "no_types"
