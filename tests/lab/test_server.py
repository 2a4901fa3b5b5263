"""Real userlands: the prediction of an audit of an eager kernel is what a lazy kernel uses for the same work."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import campaign
from tests.lab import kernels, server
from tests.lab.kernels import CACHE
from tests.lab.server import SERVERS

pytestmark = pytest.mark.lab


def boot(name: str, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Boot a server; return the audit of its core, and the reference's reading of the core."""
    server.examine(SERVERS[name], kernels.debian_kernel(SERVERS[name].series, dwarf=True), folder, CACHE)
    command = [sys.executable, "-m", "pipeline", "inspect", folder / "vmcore", "--json"]
    audit = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return audit, json.loads((folder / "charges.json").read_text())


@pytest.mark.parametrize("userland", campaign.sample(["systemd", "runc"], 1))
def test_an_eager_kernel_predicts_what_a_lazy_one_holds(userland: str, tmp_path: Path) -> None:
    eager, _ = boot(f"{userland}-510", tmp_path / "eager")
    lazy, charges = boot(f"{userland}-61", tmp_path / "lazy")
    assert eager["lazy_basis"] == "charged"
    assert eager["lazy_bytes"] == pytest.approx(lazy["list_lru_bytes"], rel=0.1)
    for lru in charges["list_lrus"]:
        assert set(lru["charged"]) <= set(lru["entries"]), "an owner of a live object has an entry"
