"""A short soak: a few steps of `make soak`, chosen by TEST_SEED."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys

import pytest

from tests import campaign
from tests.soak.growth import growth
from tests.soak.targets import ROOT

STEPS = 3


def test_a_slope_is_within_its_error() -> None:
    hits = 0
    for seed in range(200):
        chance = random.Random(seed)
        warm_up = [(second, second / 2) for second in range(0, 900, 10)]
        samples = [(second, 450 + 2000 * second / 3600 + chance.gauss(0, 300)) for second in range(900, 3600, 10)]
        slope = growth([*warm_up, *samples])
        assert slope is not None
        assert slope.error < 500
        hits += abs(slope.per_hour - 2000) < slope.error
    assert hits > 180, "two standard deviations"
    assert growth(samples[:20]) is None


@pytest.mark.faults
@pytest.mark.skipif(not campaign.IS_FULL, reason="takes minutes: TEST_FULL=1 runs it")
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.skipif(shutil.which("ip") is None, reason="needs iproute2")
def test_runs_with_faults_are_whole_and_leave_nothing() -> None:
    if subprocess.run(["unshare", "--mount", "--pid", "--fork", "--net", "true"], check=False).returncode:
        pytest.skip("needs mount namespaces")
    command = [sys.executable, "-m", "tests.soak", "--seed", str(campaign.SEED), "--steps", str(STEPS)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(process.stdout)
    assert process.returncode == 0, process.stdout + process.stderr
    assert f"| steps, faults | {STEPS}, " in process.stdout
