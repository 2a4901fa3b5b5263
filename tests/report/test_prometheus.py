"""The metrics as Prometheus' own parser reads them: names, labels and exact values of the contract."""

from __future__ import annotations

import io

from prometheus_client.parser import text_string_to_metric_families

from pipeline.report.model import build_report
from pipeline.report.prometheus import prometheus
from tests.warehouse.outcomes import STARTED_AT, failure, ok, publish, session, set_cell


def samples(root, **options):
    """Return the labels and value of each sample by metric name."""
    file = io.StringIO()
    prometheus(build_report(session(root)), file, **options)
    metrics: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(file.getvalue()):
        assert family.type == "gauge"
        assert family.documentation
        for sample in family.samples:
            metrics.setdefault(sample.name, []).append((sample.labels, sample.value))
    return metrics


def test_every_host_and_status_is_a_series_with_its_exact_bytes(tmp_path):
    publish(tmp_path, ok("web-1", mounts=952, nodes=4, cache_ids=24574), ok("web-2"), failure("db-1"), audit="prod")
    metrics = samples(tmp_path)
    db = session(tmp_path)
    for name in ("list_lru", "wasted", "lazy"):
        assert metrics[f"list_lru_audit_{name}_bytes"] == [
            ({"audit": "prod", "target": row["target"]}, row[f"{name}_bytes"]) for row in db.rows("FROM host_waste")
        ]
        total = sum(value for _, value in metrics[f"list_lru_audit_{name}_bytes"])
        assert metrics[f"list_lru_audit_total_{name}_bytes"] == [({"audit": "prod"}, total)]
    assert [value for _, value in metrics["list_lru_audit_memory_bytes"]] == [2**32, 2**32]
    assert metrics["list_lru_audit_total_memory_bytes"] == [({"audit": "prod"}, 2**33)]
    by_status = {labels["status"]: value for labels, value in metrics["list_lru_audit_targets"]}
    assert {status for status, value in by_status.items() if value} == {"ok", "unreachable"}
    assert (by_status["ok"], by_status["unreachable"]) == (2, 1)
    assert metrics["list_lru_audit_run_timestamp_seconds"] == [({"audit": "prod"}, STARTED_AT / 1e6)]
    assert metrics["list_lru_audit_target_info"][0][0] == {
        "audit": "prod", "target": "web-1", "host": "web-1",
        "kernel_release": "5.10.0-30-cloud-amd64", "layout": "eager", "lazy_basis": "online",
    }  # fmt: skip


def test_the_error_of_a_sample_is_a_series_and_that_of_no_other_host(tmp_path):
    sampled = ok("web-1")
    sampled["row"] |= {"lazy_basis": "sampled", "lazy_error_bytes": 3072}
    publish(tmp_path, sampled, ok("web-2"), audit="prod")
    metrics = samples(tmp_path)
    assert metrics["list_lru_audit_lazy_error_bytes"] == [({"audit": "prod", "target": "web-1"}, 3072)]
    assert len(metrics["list_lru_audit_lazy_bytes"]) == 2


def test_every_part_of_what_memory_cgroups_cost_is_a_series(tmp_path):
    old, new = ok("old"), ok("new")
    new["row"]["target_kernel"] = None
    set_cell(new, "memcg_memory", "upgraded_bytes", None)
    publish(tmp_path, old, new, audit="prod")
    metrics = samples(tmp_path)
    for name, column in (("memcg_memory", "held_bytes"), ("memcg_memory_upgraded", "upgraded_bytes")):
        rows = session(tmp_path).rows(f"SELECT target, part, {column} AS bytes FROM memcg_memory ORDER BY target, part")
        assert metrics[f"list_lru_audit_{name}_bytes"] == [
            ({"audit": "prod", "target": row["target"], "part": row["part"]}, row["bytes"])
            for row in rows
            if row["bytes"] is not None
        ]
    # 5 list_lrus of 256 bytes on each host, and of 712 with the new kernel, which the host `new` has already.
    totals = {labels["part"]: value for labels, value in metrics["list_lru_audit_total_memcg_memory_bytes"]}
    assert totals == {"list_lru": 2 * 5 * 256, "shrinker_info": 2 * 192, "memcg_structs": 0, "memcg_percpu": 0}
    totals = {labels["part"]: value for labels, value in metrics["list_lru_audit_total_memcg_memory_upgraded_bytes"]}
    assert totals == {"list_lru": 5 * 256 + 5 * 712, "shrinker_info": 2 * 3072, "memcg_structs": 0, "memcg_percpu": 0}


def test_the_net_of_an_upgrade_is_a_series_where_it_is_predicted(tmp_path):
    old, new = ok("old"), ok("new")
    new["row"]["target_kernel"] = None
    publish(tmp_path, old, new, audit="prod")
    metrics = samples(tmp_path)
    # 5 list_lrus of 256 bytes and then 712; 192 bytes of shrinker_info and then 3,072.
    net_bytes = 5 * (256 - 712) + 192 - 3072
    assert metrics["list_lru_audit_upgrade_net_bytes"] == [({"audit": "prod", "target": "old"}, net_bytes)]
    assert metrics["list_lru_audit_total_upgrade_net_bytes"] == [({"audit": "prod"}, net_bytes)]


def test_the_totals_count_a_machine_that_was_reached_twice_once(tmp_path):
    by_ssh, by_qmp, other = ok("db-ssh", cache_ids=382), ok("db-qmp", cache_ids=382), ok("web", cache_ids=766)
    for outcome, kind in ((by_ssh, "ssh"), (by_qmp, "qmp")):
        outcome["row"] |= {"host": "db", "kind": kind, "boot_id": "b"}
    publish(tmp_path, by_ssh, by_qmp, other)
    metrics = samples(tmp_path)
    for name in ("list_lru", "wasted", "lazy", "memory"):
        by_target = {labels["target"]: value for labels, value in metrics[f"list_lru_audit_{name}_bytes"]}
        assert by_target["db-ssh"] == by_target["db-qmp"]
        total = metrics[f"list_lru_audit_total_{name}_bytes"][0][1]
        assert total == by_target["db-ssh"] + by_target["web"]


def test_with_more_hosts_than_series_only_totals_are_written_and_it_is_said(tmp_path):
    publish(tmp_path, *(ok(f"web-{n}", cache_ids=382) for n in range(4)))
    metrics = samples(tmp_path, max_series=3)
    assert not metrics.keys() & {
        "list_lru_audit_wasted_bytes",
        "list_lru_audit_target_info",
        "list_lru_audit_memcg_memory_bytes",
    }
    assert metrics["list_lru_audit_targets_without_series"] == [({"audit": "adhoc"}, 4)]
    assert metrics["list_lru_audit_total_wasted_bytes"][0][1] > 0
    assert samples(tmp_path, max_series=4)["list_lru_audit_targets_without_series"] == [({"audit": "adhoc"}, 0)]


def test_a_hostile_name_stays_one_label(tmp_path):
    name = 'a"} 1\n# HELP x\\y'
    publish(tmp_path, ok(name))
    ((labels, _),) = samples(tmp_path)["list_lru_audit_wasted_bytes"]
    assert labels["target"] == name.replace("\n", r"\n")
