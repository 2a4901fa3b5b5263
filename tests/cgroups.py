"""Cgroups of the running kernel, for tests of limits."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def memory_cgroup(limit_bytes: int) -> Iterator[Path]:
    """Create a memory cgroup at the root, with a limit on itself, and yield a cgroup below it."""
    for parent, name in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        outer = Path(parent, f"lru-audit-test-{os.getpid()}")
        inner = outer / "inner"
        try:
            inner.mkdir(parents=True)
        except OSError:
            continue
        try:
            if (outer / name).exists():
                (outer / name).write_text(str(limit_bytes))
                yield inner
                return
        finally:
            inner.rmdir()
            outer.rmdir()
    pytest.skip("needs a memory cgroup")
