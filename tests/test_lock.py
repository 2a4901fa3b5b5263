"""The lock files have every requirement, at a version that satisfies it, with hashes and without an index."""

from __future__ import annotations

import json
import re

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests import advisories, lock


def locked(name: str) -> dict[str, list[str]]:
    """Return the versions of each distribution of an installation."""
    versions: dict[str, list[str]] = {}
    for file in [*lock.BASES[name], name]:
        for distribution, version, _ in lock.pins(file):
            versions.setdefault(distribution, []).append(version)
    return versions


@pytest.mark.parametrize("name", lock.EXTRAS)
def test_every_requirement_is_locked(name: str) -> None:
    versions = locked(name)
    for line in lock.requirements(name):
        requirement = Requirement(line)
        candidates = versions[canonicalize_name(requirement.name)]
        assert all(requirement.specifier.contains(version) for version in candidates), (line, candidates)


def test_every_extra_is_locked() -> None:
    config = lock.setup_config()
    assert sorted(config["options.extras_require"]) == sorted(
        extra for extras in lock.EXTRAS.values() for extra in extras
    )


@pytest.mark.parametrize("name", lock.EXTRAS)
def test_an_installation_has_one_version_of_each(name: str) -> None:
    pins = [pin for file in [*lock.BASES[name], name] for pin in lock.pins(file)]
    unconditional = [distribution for distribution, _, marker in pins if not marker]
    assert len(unconditional) == len(set(unconditional))


@pytest.mark.parametrize("name", lock.EXTRAS)
def test_every_line_is_a_pin_with_hashes(name: str) -> None:
    text = lock.lock_path(name).read_text()
    entry = r"[a-z0-9.-]+==\S+( ; [^\\\n]+)? (\\\n    --hash=sha256:[0-9a-f]{64}\s)+"
    assert re.fullmatch(f"({entry})+", text)


def test_a_vulnerability_fails(capsys: pytest.CaptureFixture[str]) -> None:
    vulnerability = {"id": "PYSEC-1", "fix_versions": ["2.1"], "aliases": [], "description": ""}
    reply = {"dependencies": [{"name": "a", "version": "2.0", "vulns": [vulnerability]}]}
    assert advisories.check(json.dumps(reply)) == 1
    assert capsys.readouterr().out == "a 2.0: PYSEC-1, fixed in 2.1\n"


def test_what_was_not_looked_up_is_not_called_good(capsys: pytest.CaptureFixture[str]) -> None:
    assert advisories.check('{"dependencies": [{"name": "a", "skip_reason": "not found"}]}') == 0
    assert capsys.readouterr().out == "skipped: 1 of 1 distributions were not looked up: not found\n"
