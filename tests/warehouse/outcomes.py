"""Outcomes as the runner and the fanout produce them, from eager hosts with consistent numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.dataset as ds

from pipeline import query, warehouse

STARTED_AT = 1_763_900_000_000_000  # 2025-11-23T12:13:20Z


def run(run_id: str | None = None, **values: Any) -> dict[str, Any]:
    """Return the run dict that the command line passes to `Staging.create`."""
    run_id = run_id or warehouse.new_run_id()
    return {
        "run_id": run_id,
        "audit": "adhoc",
        "started_at": STARTED_AT,
        "tool_version": "0.1.0",
        "targets": 1,
        **values,
    }


def ok(target: str = "web-1", *, mounts: int = 2, nodes: int = 1, cache_ids: int = 4) -> dict[str, Any]:
    """Return the outcome of an eager host: `mounts` superblocks with two list_lrus each, and shadow_nodes."""
    superblocks = [
        {
            "address": 0xFFFF_8880_0000_0000 + 4096 * n,
            "fstype": "tmpfs" if n % 2 else "overlay",
            "s_id": f"sb{n}",
            "detached": False,
        }
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
    list_lru_bytes = sum(
        row["list_lru_one_bytes"] + row["pointer_array_bytes"] + row["node_array_bytes"] for row in lists
    )
    memcg_memory = [
        memcg_part("list_lru", left_bytes=list_lru_bytes, upgraded_bytes=sum(row["lazy_bytes"] for row in lists)),
        memcg_part("shrinker_info", online_bytes=128, dying_bytes=64, upgraded_bytes=3072),
        memcg_part("memcg_structs", upgraded_bytes=0),
        memcg_part("memcg_percpu", upgraded_bytes=0),
    ]
    dying_memcg_pages = [dying_pages("anonymous", pages=1), dying_pages("other", pages=0)]
    host = {
        "collector_version": "0.1.0",
        "model_version": 1,
        "host": target,
        "kernel_release": "5.10.0-30-cloud-amd64",
        "arch": "x86_64",
        "page_bytes": 4096,
        "memory_bytes": 2**32,
        "slab_unreclaimable_bytes": list_lru_bytes + 2**24,
        "slab_reclaimable_bytes": 2**23,
        "percpu_bytes": 2**20,
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
        "target_kernel": "6.12",
        "consistency": "exact",
    }
    tables = {
        "superblocks": superblocks,
        "list_lrus": lists,
        "memcgs": memcgs,
        "memcg_memory": memcg_memory,
        "dying_memcg_pages": dying_memcg_pages,
    }
    return outcome(target, "ok", host, {name: table(rows) for name, rows in tables.items()})


def failure(target: str, status: str = "unreachable", error: str = "no route to host") -> dict[str, Any]:
    """Return the outcome of a failed target, without numbers."""
    return outcome(target, status, {"error_type": "OSError", "error": error}, {})


def outcome(target: str, status: str, host: dict[str, Any], tables: dict[str, Any]) -> dict[str, Any]:
    result = {"status": status, "error_type": host.get("error_type"), "error": host.get("error")}
    row = {
        "kind": "vmcore",
        "source": f"/cores/{target}",
        "via": None,
        "labels": {"rack": "r1"},
        "attempts": 1,
        "started_at": STARTED_AT,
        "duration_ms": 12,
        **host,
        **result,
    }
    attempt = {"attempt": 1, "node": "ray-1", "started_at": STARTED_AT, "duration_ms": 12, **result}
    return {"target": target, "row": row, "attempts": [attempt], "tables": tables}


def list_lru(address: int, nodes: int, cache_ids: int, **columns: Any) -> dict[str, Any]:
    objects = nodes * cache_ids
    return {
        "address": address,
        **columns,
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


def memcg_part(
    part: str, *, online_bytes: int = 0, dying_bytes: int = 0, left_bytes: int = 0, upgraded_bytes: int | None = None
) -> dict[str, Any]:
    """Return a row of memcg_memory."""
    return {
        "part": part,
        "held_bytes": online_bytes + dying_bytes + left_bytes,
        "online_bytes": online_bytes,
        "dying_bytes": dying_bytes,
        "left_bytes": left_bytes,
        "upgraded_bytes": upgraded_bytes,
        "basis": "exact",
    }


def dying_pages(kind: str, *, pages: int, path: str | None = None, deleted: bool = False) -> dict[str, Any]:
    """Return a row of dying_memcg_pages: of one file, if it is page cache."""
    is_file = kind in ("file", "shmem")
    return {
        "parent": 1,
        "kind": kind,
        "superblock": None,
        "inode": 12 if is_file else None,
        "deleted": deleted if is_file else None,
        "path": path,
        "files": int(is_file),
        "memcgs": 1,
        "pages": pages,
        "bytes": 4096 * pages,
    }


def table(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return rows as a table of a snapshot: its columns and its rows."""
    return {"columns": list(rows[0]), "rows": [list(row.values()) for row in rows]}


def set_cell(outcome: dict[str, Any], name: str, column: str, value: Any) -> dict[str, Any]:
    """Set a value in the first row of a table and return the outcome."""
    content = outcome["tables"][name]
    content["rows"][0][content["columns"].index(column)] = value
    return outcome


def skip_checks(tables: Any) -> list[Any]:
    """Replace `query.check`, which takes most of the time of a small run, in tests that do not test checks."""
    return []


def publish(root: Any, *outcomes: dict[str, Any], check: Any = skip_checks, **values: Any) -> Any:
    """Publish a run of these outcomes and return its directory; a revision has the place of the revised run."""
    if revised_id := values.get("revision_of"):
        values.setdefault("sequence", warehouse.read_manifest(root, revised_id).sequence)
    staging = warehouse.Staging.create(root, run(**{"targets": len(outcomes), **values}))
    for outcome in outcomes:
        staging.append(outcome)
    return directory_of(staging.publish(check))


def directory_of(manifest: warehouse.Manifest) -> Path:
    """Return the local directory of a run."""
    return Path(manifest.directory.path)


def session(root: Any, **options: Any) -> query.Session:
    """Return a session over a warehouse."""
    tables: dict[str, ds.UnionDataset] = warehouse.tables(root)
    return query.Session(tables, **options)
