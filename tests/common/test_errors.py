"""The tree in the docstring of `pipeline.common.errors` matches the classes in the code."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

from pipeline.common import errors

ROOT = Path(__file__).parents[2]


def documented_errors() -> list[tuple[int, str, int]]:
    """Return depth, name and exit code of each line of the tree in the docstring."""
    tree = re.findall(r"^    ([│├└─ ]*)(\w+) +(\d) ", errors.__doc__, re.MULTILINE)
    return [(len(branch) // 4, name, int(code)) for branch, name, code in tree]


def actual_errors(error: type[errors.AuditError], depth: int = 0) -> list[tuple[int, str, int]]:
    """Return depth, name and exit code of a class and its subclasses."""
    subclasses = [line for child in error.__subclasses__() for line in actual_errors(child, depth + 1)]
    return [(depth, error.__name__, error.exit_code), *subclasses]


def test_the_docstring_has_every_error_with_its_base_and_exit_code():
    for file in (ROOT / "pipeline").rglob("*.py"):
        if file.name not in ("__init__.py", "__main__.py", "remote.py"):
            importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))
    assert sorted(documented_errors()) == sorted(actual_errors(errors.AuditError))


def test_only_these_errors_have_an_exit_code():
    def classes(base: type) -> list[type]:
        return [base, *(error for child in base.__subclasses__() for error in classes(child))]

    for error in classes(BaseException):
        if error.__module__.startswith("pipeline."):
            assert issubclass(error, errors.AuditError) == hasattr(error, "exit_code"), error
