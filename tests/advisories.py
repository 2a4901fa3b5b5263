"""Look up known vulnerabilities of the locked distributions, and say aloud when the index has no answer.

``python -m tests.advisories`` needs pip-audit. It fails on a finding, and ends well if nothing could be looked up.
"""

from __future__ import annotations

import json
import subprocess
import sys

from tests import lock


def check(reply: str) -> int:
    """Print what pip-audit replied in JSON and return the exit code."""
    distributions = json.loads(reply)["dependencies"]
    findings = [(found, vuln) for found in distributions for vuln in found.get("vulns", [])]
    for found, vuln in findings:
        fixes = ", ".join(vuln["fix_versions"]) or "no version"
        print(f"{found['name']} {found['version']}: {vuln['id']}, fixed in {fixes}")
    skipped = [found["skip_reason"] for found in distributions if "skip_reason" in found]
    if skipped:
        print(f"skipped: {len(skipped)} of {len(distributions)} distributions were not looked up: {skipped[0]}")
    elif not findings:
        print(f"no known vulnerabilities in {len(distributions)} distributions")
    return 1 if findings else 0


if __name__ == "__main__":
    command = [
        sys.executable,
        "-m",
        "pip_audit",
        "--disable-pip",
        "--require-hashes",
        "--format",
        "json",
        "--timeout",
        "5",
    ]
    for name in lock.EXTRAS:
        command += ["--requirement", str(lock.lock_path(name))]
    process = subprocess.run(command, check=False, capture_output=True, text=True)
    if not process.stdout:
        print("skipped: no answer from the index:", process.stderr.strip().splitlines()[-1])
        sys.exit(0)
    sys.exit(check(process.stdout))
