"""What v6.1 allocates, from the types of Debian's 6.1.0-50-cloud-amd64.

``python -m tests.lab target-kernel 6.1`` prints this file.
"""

FIELDS = {
    "list_lru_one": 24,
    "mem_cgroup": 2176,
    "mem_cgroup_per_node": 2560,
    "cgroup": 1792,
    "memcg_vmstats": 1040,
    "lruvec_stats": None,
    "psi_group": 720,
    "obj_cgroup": 48,
    "percpu_ref_data": 56,
    "shrinker_info": 32,
    "shrinker_info_unit": None,
    "memcg_vmstats_percpu": 1064,
    "lruvec_stats_percpu": 688,
    "cgroup_rstat_cpu": 64,
    "cgroup_rstat_base_cpu": None,
    "css_rstat_cpu": None,
    "psi_group_cpu": 128,
    "perf_cgroup_info": 32,
    "has_memcg_v1": True,
    "has_memcg_caches": False,
    "has_objcg_of_nodes": False,
    "reparents_folios": False,
}
