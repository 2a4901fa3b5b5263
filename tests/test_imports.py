"""What each room may import: the arrows of the design, checked on every file."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Room to the rooms that it may import; `pipeline` stands for the version, text and status, which hold no logic.
COMMON = {"pipeline", "text", "collector.status"}
ROOMS = {
    "cli": {"inventory", "plan", "cluster", "fanout", "runner", "redact", "progress", "warehouse", "query", "report"}
    | {"adhoc", "inspect", "estimate", "listing", "output", "wheels", "collector.cost"},
    "__main__": {"cli"},
    "inventory": set(),
    "plan": {"inventory"},
    "progress": set(),
    "cluster": {"plan", "runner", "scratch"},
    "fanout": {"cluster", "plan", "runner", "inventory"},
    "runner": {"transports", "inventory", "frame", "launch"},
    "redact": {"runner", "inventory"},
    "frame": set(),
    "launch": set(),
    "transports": {"inventory"},
    "collector": set(),
    "warehouse": {"data", "scratch"},
    "query": {"data", "scratch"},
    "report": {"query", "data"},
    "adhoc": {"warehouse", "query", "report", "output"},
    "inspect": {"collector.cost"},
    "estimate": {"collector.cost"},
    "listing": set(),
    "output": set(),
    "scratch": set(),
    "wheels": set(),
    "data": set(),
    "text": set(),
}
# Packages that belong to one room.
ONLY_IN = {"ray": {"cluster"}, "duckdb": {"query"}, "drgn": {"collector"}, "pyarrow": {"warehouse", "query", "report"}}

FILES = sorted((ROOT / "pipeline").rglob("*.py"))


def room(path: Path) -> str:
    parts = path.relative_to(ROOT / "pipeline").with_suffix("").parts
    return "pipeline" if parts == ("__init__",) else parts[0]


def imports(path: Path) -> set[str]:
    """Return the absolute names of what a file imports, wherever in the file and however it does."""
    found = set()
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) + 1 - node.level]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            found |= {f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module":
            found.add(ast.literal_eval(node.args[0]))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_what_its_room_may(path: Path) -> None:
    own = room(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "pipeline":
            continue
        other = (
            parts[1] if len(parts) > 1 and (ROOT / "pipeline" / parts[1]).with_suffix("").name in ROOMS else "pipeline"
        )
        allowed = {own, *ROOMS.get(own, set()), *COMMON}
        assert other in allowed or ".".join(parts[1:3]) in allowed, f"{path.name} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_ray_duckdb_drgn_and_pyarrow_stay_in_their_rooms(path: Path) -> None:
    for name in imports(path):
        package = name.split(".")[0]
        if package in ONLY_IN:
            assert room(path) in ONLY_IN[package], f"{path.name} imports {name}"


def test_the_collector_needs_the_standard_library_and_drgn_only() -> None:
    for path in (ROOT / "pipeline" / "collector").glob("*.py"):
        for name in imports(path):
            top = name.split(".")[0]
            assert top in sys.stdlib_module_names or top == "drgn" or name.startswith("pipeline.collector"), name


def test_every_room_is_in_the_table() -> None:
    assert {room(path) for path in FILES} - {"pipeline"} == set(ROOMS)


def test_the_collector_runs_on_python_3_6() -> None:
    vermin = pytest.importorskip("vermin")
    config = vermin.Config()
    for path in (ROOT / "pipeline" / "collector").glob("*.py"):
        _, version3 = vermin.detect(path.read_text(), config)
        assert version3 <= (3, 6), path
