"""The arrows between the rooms of pipeline/: what the files of each folder may import."""

from __future__ import annotations

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Every room may also import `common` and the version in `pipeline` itself.
ROOMS = {
    "": {"cli"},
    "cli": {"inventory", "fanout", "fanout.runner", "fanout.transports", "collector.model"}
    | {"warehouse", "query", "report", "report.screens", "collector"},
    "inventory": {"collector", "collector.model"},
    "fanout": {"inventory", "fanout.runner", "collector"},
    "fanout.runner": {"inventory", "fanout.transports", "collector"},
    "fanout.transports": {"inventory", "collector", "fanout.transports.session"},
    "fanout.transports.session": set(),
    "collector": {"collector.access", "collector.walk", "collector.model"},
    "collector.access": {"collector"},
    "collector.walk": {"collector", "collector.access", "collector.model"},
    "collector.model": set(),
    "warehouse": {"collector"},
    "query": set(),
    "report": {"query"},
    "report.screens": {"collector.model"},
    "common": set(),
}
# The files of `collector` that other rooms may import; the others belong to the collector's own process.
SHARED_BY_THE_COLLECTOR = {
    "pipeline.collector.status",
    "pipeline.collector.budget",
    "pipeline.collector.foreign",
    "pipeline.collector.formats",
    "pipeline.collector.__version__",
}
# Becomes the collector's own process, by a fork.
FORK_SERVER = ROOT / "pipeline" / "fanout" / "runner" / "launch.py"
# Packages that belong to some rooms only.
ONLY_IN = {
    "ray": {"fanout"},
    "duckdb": {"query"},
    "drgn": {"collector", "collector.access", "collector.walk"},
    "pyarrow": {"inventory", "warehouse", "query", "report"},
}

FILES = sorted((ROOT / "pipeline").rglob("*.py"))


def room(path: Path) -> str:
    """Return the folder of a file below pipeline/, dotted."""
    return ".".join(path.relative_to(ROOT / "pipeline").parent.parts)


def module(name: str) -> Path | None:
    """Return the file of pipeline/ that an imported name stands for: a module, or what a module or package defines."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        base = ROOT.joinpath(*parts[:length])
        for file in (base.with_suffix(".py"), base / "__init__.py"):
            if file.is_file():
                return file
    return None


def imports(path: Path) -> set[str]:
    """Return the absolute names that a file imports, wherever in the file and by whatever statement."""
    names = set()
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) + 1 - node.level]) if node.level else ""
            imported = ".".join(filter(None, [base, node.module]))
            names |= {f"{imported}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module":
            names.add(ast.literal_eval(node.args[0]))
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_what_its_room_may(path: Path) -> None:
    own = room(path)
    for name in imports(path):
        if name.split(".")[0] != "pipeline":
            continue
        file = module(name)
        assert file is not None, f"{path.name} imports {name}"
        other = room(file)
        assert other in {own, "common", "", *ROOMS[own]}, f"{path.name} imports {name}"
        if other == "collector" and not own.startswith("collector") and path != FORK_SERVER:
            assert name.startswith(tuple(SHARED_BY_THE_COLLECTOR)), f"{path.name} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_ray_duckdb_drgn_and_pyarrow_stay_in_their_rooms(path: Path) -> None:
    for name in imports(path):
        package = name.split(".")[0]
        if package in ONLY_IN:
            assert room(path) in ONLY_IN[package], f"{path.name} imports {name}"


def test_no_arrow_points_back_up() -> None:
    """The rooms can be put in an order in which each imports only later ones.

    Inside the collector its own files (status, budget) are the lowest floor, and its process the highest.
    """
    arrows = {own: {other for other in others if other != "collector"} for own, others in ROOMS.items()}
    tuple(TopologicalSorter(arrows).static_order())  # raises CycleError


def test_the_collector_needs_the_standard_library_and_drgn_only() -> None:
    for path in (ROOT / "pipeline" / "collector").rglob("*.py"):
        for name in imports(path):
            top = name.split(".")[0]
            assert top in sys.stdlib_module_names or top == "drgn" or name.startswith("pipeline.collector"), name


def test_the_session_needs_the_standard_library_only() -> None:
    """It is started as a package of its own, so the paths are relative."""
    for path in (ROOT / "pipeline" / "fanout" / "transports" / "session").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= sys.stdlib_module_names, path.name
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 1 or str(node.module).split(".")[0] in sys.stdlib_module_names, path.name


def test_every_room_is_in_the_table() -> None:
    assert {room(path) for path in FILES} == set(ROOMS)


def test_the_collector_runs_on_python_3_6() -> None:
    vermin = pytest.importorskip("vermin", reason="needs vermin")
    config = vermin.Config()
    for path in (ROOT / "pipeline" / "collector").rglob("*.py"):
        _, version3 = vermin.detect(path.read_text(), config)
        assert version3 <= (3, 6), path
