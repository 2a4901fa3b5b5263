"""What v6.6 allocates, from the types of v6.6.87 with the configuration of Debian's 6.1.0-50-cloud-amd64.

Debian has no v6.6. ``python -m tests.lab target-kernel 6.6 --vmlinux FILE`` prints this file.
"""

FIELDS = {
    "list_lru_one": 24,
    "mem_cgroup": 2176,
    "mem_cgroup_per_node": 2888,
    "cgroup": 1800,
    "memcg_vmstats": 1608,
    "lruvec_stats": None,
    "psi_group": 720,
    "obj_cgroup": 48,
    "percpu_ref_data": 56,
    "shrinker_info": 40,
    "shrinker_info_unit": None,
    "memcg_vmstats_percpu": 1096,
    "lruvec_stats_percpu": 688,
    "cgroup_rstat_cpu": 112,
    "cgroup_rstat_base_cpu": None,
    "css_rstat_cpu": None,
    "psi_group_cpu": 128,
    "perf_cgroup_info": 32,
    "has_memcg_v1": True,
    "has_memcg_caches": False,
    "has_objcg_of_nodes": False,
    "reparents_folios": False,
}
