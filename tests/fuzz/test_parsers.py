"""Parsers of bytes from outside return a value or raise their own errors, whatever the bytes are."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import campaign
from tests.fuzz import parsers

ROOT = Path(__file__).parents[2]
TARGETS = parsers.targets([])


@pytest.mark.parametrize("name", TARGETS)
def test_valid_and_cut_inputs(name: str) -> None:
    """Each seed as it is, cut off, and with each of some bytes changed."""
    target = TARGETS[name]
    for seed in list(target.seeds())[:4]:
        target.run(seed)
        for position in range(0, len(seed), len(seed) // 8 + 1):
            target.run(seed[:position])
            target.run(seed[:position] + bytes([seed[position] ^ 0xFF]) + seed[position + 1 :])


@pytest.mark.faults
def test_a_campaign(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("atheris", reason="needs atheris")
    cases = 100_000 if campaign.IS_FULL else 4_000
    command = [sys.executable, "-m", "tests.fuzz", "parsers", "--seed", str(campaign.SEED), "--cases", str(cases)]
    process = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    with capsys.disabled():
        print(process.stdout.splitlines()[-1])
    assert process.returncode == 0, process.stdout
    counts = dict(re.findall(r"(?m)^([\w-]+): ([\d,]+) cases", process.stdout))
    assert counts.keys() == TARGETS.keys()
    assert all(int(count.replace(",", "")) >= cases // 40 for count in counts.values()), counts
