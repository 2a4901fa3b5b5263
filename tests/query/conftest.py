"""The cores in tests/vmcores as one published run, collected by the runner and checked like every run."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline import query, warehouse
from pipeline.fanout import runner
from pipeline.inventory import Target
from tests.warehouse.outcomes import run

CORES_STARTED_AT = 1_767_225_600_000_000  # 2026-01-01T00:00:00Z; without a date in the future, it can be the newest run
VMCORES = Path(__file__).parents[1] / "vmcores"


@pytest.fixture(scope="session")
def attempts() -> dict[str, dict[str, Any]]:
    """The runner's attempt at each core, and at a file that is not a core, by name."""
    files = {path.parent.name: path for path in sorted(VMCORES.glob("*/vmcore"))} | {"readme": VMCORES / "README.md"}
    targets = [Target(name, "vmcore", str(path)) for name, path in files.items()]
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(files, pool.map(lambda target: runner.run(target, 1, runner.Limits()), targets), strict=True))


@pytest.fixture(scope="session")
def cores_root(attempts: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A warehouse with one run of audit `bundled`."""
    root = tmp_path_factory.mktemp("bundled")
    publish_cores(root, attempts)
    return root


def publish_cores(root: Path, attempts: dict[str, dict[str, Any]]) -> None:
    """Publish a run of audit `bundled`: every core, each but the server's labelled with its nodes."""
    values = run("20260101T000000Z-0000b0d1", audit="bundled", started_at=CORES_STARTED_AT, targets=len(attempts))
    staging = warehouse.Staging.create(root, values)
    for name, attempt in attempts.items():
        labels = {} if name == "bytedance" else {"nodes": name.rpartition("-")[2]}
        target = Target(name if name == "readme" else f"{name}/vmcore", "vmcore", f"/cores/{name}", labels=labels)
        staging.append(runner.outcome(target, [attempt]))
    staging.publish(query.check)
