"""The cost of the next growth of ids in SQL, from published rows, equals the cost in the collector's model."""

from __future__ import annotations

import itertools

from pipeline.collector.model import cost
from tests.warehouse.outcomes import ok, publish, session

NODES = 2
ARRAY_BYTES = 64  # of each pointer array in these rows


def test_every_growth_costs_what_the_model_says(tmp_path):
    series = [0]
    while series[-1] < 65535:
        series.append(cost.next_cache_ids(series[-1]))
    hosts = [ok(f"{ids}-ids", nodes=NODES, cache_ids=ids) for ids in series[1:-1]]
    publish(tmp_path, *hosts)
    lists = len(hosts[0]["tables"]["list_lrus"]["rows"])
    sizes = cost.x86_64(NODES)
    expected_costs = {}
    for ids, next_ids in itertools.pairwise(series[1:]):
        _, arrays, objects = cost.eager_bytes(sizes, NODES, next_ids)
        _, _, current_objects = cost.eager_bytes(sizes, NODES, ids)
        expected_costs[ids] = (next_ids, lists * (objects - current_objects), lists * (arrays - NODES * ARRAY_BYTES))
    costs = {
        row["memcg_nr_cache_ids"]: (row["next_cache_ids"], row["next_object_bytes"], row["next_array_bytes"])
        for row in session(tmp_path).rows("FROM next_doubling")
    }
    assert costs == expected_costs
