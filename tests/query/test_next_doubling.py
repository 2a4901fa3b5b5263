"""What the next growth of ids costs by SQL, from published rows, is what it costs by the collector's model."""

from __future__ import annotations

import itertools

from pipeline.collector.model import cost
from tests.warehouse.outcomes import ok, publish, session

NODES = 2
ARRAY_BYTES = 64  # of each in these rows


def test_every_growth_costs_what_the_model_says(tmp_path):
    series = [0]
    while series[-1] < 65535:
        series.append(cost.next_cache_ids(series[-1]))
    hosts = [ok(f"{ids}-ids", nodes=NODES, cache_ids=ids) for ids in series[1:-1]]
    publish(tmp_path, *hosts)
    lists = len(hosts[0]["tables"]["list_lrus"]["rows"])
    sizes = cost.x86_64(NODES)
    expected = {}
    for ids, grown in itertools.pairwise(series[1:]):
        _, arrays, objects = cost.eager_bytes(sizes, NODES, grown)
        _, _, held = cost.eager_bytes(sizes, NODES, ids)
        expected[ids] = (grown, lists * (objects - held), lists * (arrays - NODES * ARRAY_BYTES))
    found = {
        row["memcg_nr_cache_ids"]: (row["next_cache_ids"], row["next_object_bytes"], row["next_array_bytes"])
        for row in session(tmp_path).rows("FROM next_doubling")
    }
    assert found == expected
