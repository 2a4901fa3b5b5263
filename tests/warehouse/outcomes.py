"""Outcomes as runner and fanout make them, of eager hosts whose numbers agree with one another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.dataset as ds

from pipeline import query, warehouse

STARTED_AT = 1_763_900_000_000_000  # 2025-11-23T12:13:20Z


def run(run_id: str | None = None, **known: Any) -> dict[str, Any]:
    """A run dict as the command line makes it."""
    run_id = run_id or warehouse.new_run_id()
    return {
        "run_id": run_id,
        "audit": "adhoc",
        "started_at": STARTED_AT,
        "tool_version": "0.1.0",
        "targets": 1,
        **known,
    }


def ok(target: str = "web-1", *, mounts: int = 2, nodes: int = 1, cache_ids: int = 4) -> dict[str, Any]:
    """An eager host: `mounts` superblocks with two list_lrus each, and shadow_nodes."""
    superblocks = [
        {"address": 0xFFFF_8880_0000_0000 + 4096 * n, "fstype": "tmpfs" if n % 2 else "overlay", "s_id": f"sb{n}"}
        for n in range(mounts)
    ]
    lists = [
        list_lru(sb["address"] + 64 * k, nodes, cache_ids, owner="superblock", superblock=sb["address"], name=name)
        for sb in superblocks
        for k, name in enumerate(("dentry", "inode"), 1)
    ]
    lists.append(
        list_lru(0xFFFF_FFFF_8200_0000, nodes, cache_ids, owner="symbol", superblock=None, name="shadow_nodes")
    )
    memcgs = [
        {"css_id": 1, "cache_id": None, "memcg_id": 1, "path": "/", "parent": None, "state": "online"},
        {"css_id": 2, "cache_id": 0, "memcg_id": 2, "path": "/a", "parent": 1, "state": "online"},
        {"css_id": 3, "cache_id": None, "memcg_id": 3, "path": "/b", "parent": 1, "state": "dying"},
    ]
    host = {
        "collector_version": "0.1.0",
        "model_version": 1,
        "host": target,
        "kernel_release": "5.10.0-30-cloud-amd64",
        "arch": "x86_64",
        "page_bytes": 4096,
        "memory_bytes": 2**32,
        "captured_at": STARTED_AT,
        "nr_node_ids": nodes,
        "possible_nodes": list(range(nodes)),
        "online_nodes": list(range(nodes)),
        "layout": "eager",
        "memcg_nr_cache_ids": cache_ids,
        "online_memcgs": 1,
        "dying_memcgs": 1,
        "superblocks": len(superblocks),
        "list_lrus": len(lists),
        "lazy_basis": "online",
        "consistency": "exact",
    }
    tables = {
        name: table(rows) for name, rows in (("superblocks", superblocks), ("list_lrus", lists), ("memcgs", memcgs))
    }
    return outcome(target, "ok", host, tables)


def failed(target: str, status: str = "unreachable", error: str = "no route to host") -> dict[str, Any]:
    """A target without numbers."""
    return outcome(target, status, {"error_type": "OSError", "error": error}, {})


def outcome(target: str, status: str, more: dict[str, Any], tables: dict[str, Any]) -> dict[str, Any]:
    ending = {"status": status, "error_type": more.get("error_type"), "error": more.get("error")}
    row = {
        "kind": "vmcore",
        "source": f"/cores/{target}",
        "via": None,
        "labels": {"rack": "r1"},
        "attempts": 1,
        "started_at": STARTED_AT,
        "duration_ms": 12,
        **more,
        **ending,
    }
    attempt = {"attempt": 1, "node": "ray-1", "started_at": STARTED_AT, "duration_ms": 12, **ending}
    return {"target": target, "row": row, "attempts": [attempt], "tables": tables}


def list_lru(address: int, nodes: int, cache_ids: int, **named: Any) -> dict[str, Any]:
    objects = nodes * cache_ids
    return {
        "address": address,
        **named,
        "memcg_aware": True,
        "nodes": nodes,
        "cache_ids": cache_ids,
        "list_lru_one_objects": objects,
        "list_lru_one_size": 32,
        "list_lru_one_bytes": objects * 32,
        "pointer_array_bytes": nodes * 64,
        "node_array_bytes": nodes * 64,
        "xa_node_bytes": 0,
        "lazy_low_bytes": nodes * 64,
        "lazy_bytes": nodes * 64 + 64 + 584,
        "lazy_object_bytes": 64,
        "lazy_xa_node_bytes": 584,
        "lazy_high_bytes": nodes * 64 + 64 + 584,
    }


def table(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Rows as a snapshot carries them."""
    return {"columns": list(rows[0]), "rows": [list(row.values()) for row in rows]}


def columns_of(outcome: dict[str, Any], name: str, column: str) -> list[Any]:
    """One column of a table in an outcome."""
    sent = outcome["tables"][name]
    return [row[sent["columns"].index(column)] for row in sent["rows"]]


def set_cell(outcome: dict[str, Any], name: str, column: str, value: Any) -> dict[str, Any]:
    """The outcome with another value in the first row of a table."""
    sent = outcome["tables"][name]
    sent["rows"][0][sent["columns"].index(column)] = value
    return outcome


def unchecked(tables: Any) -> list[Any]:
    """In place of `query.check` where a test is not about checks; it takes most of the time of a small run."""
    return []


def publish(root: Any, *outcomes: dict[str, Any], check: Any = unchecked, **known: Any) -> Any:
    """Publish a run of these outcomes and return its directory."""
    staging = warehouse.Staging.create(root, run(**{"targets": len(outcomes), **known}))
    for each in outcomes:
        staging.append(each)
    return directory_of(staging.publish(check))


def directory_of(published: warehouse.Manifest) -> Path:
    """Where a run is on this machine."""
    return Path(published.directory.path)


def session(root: Any, **options: Any) -> query.Session:
    """A session over a warehouse."""
    tables: dict[str, ds.UnionDataset] = warehouse.tables(root)
    return query.Session(tables, **options)
