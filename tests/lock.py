"""Write the lock files in requirements/: every distribution of each installation, with its version and hashes.

``python -m tests.lock`` takes the newest versions that setup.cfg allows, and needs uv. A file lacks what the files that
are installed with it have on all systems.
"""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]

# The extras of each lock file, and the lock files that are installed with it.
EXTRAS = {"run": [], "test": ["test"], "faults": ["faults", "readers"], "browser": ["browser"]}
# A release without an sdist, against which anyone could compare its wheel, is passed over.
EXCLUDED = ["certifi!=2026.10.19.post1", "certifi!=2026.10.18"]
BASES = {"run": [], "test": ["run"], "faults": ["run", "test"], "browser": ["run", "test"]}


def setup_config() -> configparser.ConfigParser:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return config


def requirements(name: str) -> list[str]:
    """Return the requirements that setup.cfg and pyproject.toml have for a lock file, without those of its bases."""
    config = setup_config()
    lines = [line for extra in EXTRAS[name] for line in config["options.extras_require"][extra].splitlines()]
    if name == "run":
        lines += config["options"]["install_requires"].splitlines()
        lines += tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    return [line for line in lines if line and not line.startswith("#")]


def lock_path(name: str) -> Path:
    return ROOT / "requirements" / f"{name}.txt"


def pins(name: str) -> list[tuple[str, str, str]]:
    """Return the name, the version and the marker of each distribution in a lock file."""
    return re.findall(r"^([\w.-]+)==(\S+)(?: ; (.*))? \\$", lock_path(name).read_text(), re.MULTILINE)


def compile_lock(name: str) -> None:
    # No URL: the index is the choice of the machine that installs.
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--upgrade", "--universal"]
    command += ["--python-version", "3.11", "--generate-hashes", "--no-emit-index-url", "--no-header", "--no-annotate"]
    for base in BASES[name]:
        command += ["--constraint", str(lock_path(base))]
        for distribution in {distribution for distribution, _, marker in pins(base) if not marker}:
            command += ["--no-emit-package", distribution]
    text = "\n".join([*requirements(name), *(EXCLUDED if name == "run" else ())])
    subprocess.run([*command, "--output-file", str(lock_path(name)), "-"], input=text, text=True, cwd=ROOT, check=True)


if __name__ == "__main__":
    for lock in EXTRAS:
        compile_lock(lock)
