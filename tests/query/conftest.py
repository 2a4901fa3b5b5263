"""The bundled cores as one published run, collected by the runner and checked as every run is."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline import query, runner, warehouse
from pipeline.inventory import Target
from tests.warehouse.outcomes import run

NEWER_THAN_ANY_KEPT = 1_798_761_600_000_000  # 2027-01-01T00:00:00Z
VMCORES = Path(__file__).parents[1] / "vmcores"


@pytest.fixture(scope="session")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A warehouse with one run of audit `bundled`: every core, labelled with its nodes, and a file that is none."""
    root = tmp_path_factory.mktemp("bundled")
    cores = sorted(VMCORES.glob("*/vmcore"))
    targets = [
        Target(f"{core.parent.name}/vmcore", "vmcore", str(core), labels={"nodes": core.parent.name.rpartition("-")[2]})
        for core in cores
        if core.parent.name != "bytedance"
    ]
    targets.append(Target("bytedance/vmcore", "vmcore", str(VMCORES / "bytedance" / "vmcore")))
    targets.append(Target("readme", "vmcore", str(VMCORES / "README.md"), labels={"nodes": "none"}))
    known = run("20270101T000000Z-0000b0d1", audit="bundled", started_at=NEWER_THAN_ANY_KEPT, targets=len(targets))
    staging = warehouse.Staging.create(root, known)
    with ThreadPoolExecutor(2) as pool:
        for target, attempt in zip(
            targets, pool.map(lambda target: runner.run(target, 1, runner.Limits()), targets), strict=True
        ):
            staging.append(runner.outcome(target, [attempt]))
    staging.publish(query.check)
    return root
