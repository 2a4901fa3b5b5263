"""What v7.2 allocates, from the types of Debian's 7.2.12+deb14-cloud-amd64.

``python -m tests.lab target-kernel 7.2`` prints this file.
"""

FIELDS = {
    "list_lru_one": 32,
    "mem_cgroup": 1664,
    "mem_cgroup_per_node": 1920,
    "cgroup": 2368,
    "memcg_vmstats": 1784,
    "lruvec_stats": 1128,
    "psi_group": 704,
    "obj_cgroup": 56,
    "percpu_ref_data": 56,
    "shrinker_info": 24,
    "shrinker_info_unit": 520,
    "memcg_vmstats_percpu": 1216,
    "lruvec_stats_percpu": 752,
    "cgroup_rstat_cpu": None,
    "cgroup_rstat_base_cpu": 128,
    "css_rstat_cpu": 32,
    "psi_group_cpu": 128,
    "perf_cgroup_info": 56,
    "has_memcg_v1": False,
    "has_memcg_caches": True,
    "has_objcg_of_nodes": True,
    "reparents_folios": True,
}
