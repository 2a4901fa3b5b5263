"""The order of the lab's files: the longest first, so that no worker is left alone with one at the end."""

from __future__ import annotations

from pathlib import Path

import pytest

# Files that take minutes, the longest first.
LONGEST = ("test_ssh.py", "test_pairs.py", "test_audit.py", "test_logins.py", "test_server.py")
LAB = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        is_long = item.path.parent == LAB and item.path.name in LONGEST
        return LONGEST.index(item.path.name) if is_long else len(LONGEST)

    items.sort(key=rank)
