"""What v6.12 allocates, from the types of Debian's 6.12.117+deb13-cloud-amd64.

``python -m tests.lab target-kernel 6.12`` prints this file.
"""

FIELDS = {
    "list_lru_one": 24,
    "mem_cgroup": 1728,
    "mem_cgroup_per_node": 1920,
    "cgroup": 2304,
    "memcg_vmstats": 1448,
    "lruvec_stats": 744,
    "psi_group": 720,
    "obj_cgroup": 48,
    "percpu_ref_data": 56,
    "shrinker_info": 24,
    "shrinker_info_unit": 520,
    "memcg_vmstats_percpu": 1024,
    "lruvec_stats_percpu": 496,
    "cgroup_rstat_cpu": 144,
    "cgroup_rstat_base_cpu": None,
    "css_rstat_cpu": None,
    "psi_group_cpu": 128,
    "perf_cgroup_info": 32,
    "has_memcg_v1": False,
    "has_memcg_caches": False,
    "has_objcg_of_nodes": False,
    "reparents_folios": False,
}
