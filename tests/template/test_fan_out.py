"""What a parent of a hundred children costs the server, where that doesn't depend on the clock."""

import pytest

from benchmarks.fan_out import Bench
from deployments.servers import TemporaryServer

CHILDREN = 100

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bench(prefect_server: TemporaryServer) -> Bench:
    bench = Bench(prefect_server)
    bench.deploy()
    return bench


def test_a_hundred_children_complete_with_few_requests(bench: Bench) -> None:
    figures = bench.wait("ours", CHILDREN)
    assert figures["failures"] == []
    assert figures["requests_per_child"] <= 4


def test_waiting_costs_the_same_for_one_child_and_a_hundred(bench: Bench) -> None:
    for children in (1, CHILDREN):
        # 0.5 to wait and to say why, and 0.1 for the parent's page.
        assert bench.idle("ours", children)["idle_requests_per_second"] <= 0.6
