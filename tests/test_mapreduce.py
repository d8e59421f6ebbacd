"""Jobs on a Ray cluster of two nodes: the same answers as here, whatever is lost on the way."""

from collections.abc import Iterator

import pytest

pytest.importorskip("ray", reason="needs the extra cluster")

from ray.cluster_utils import Cluster

from analysis.attribution import attribute
from analysis.attribution_config import AttributionConfig
from analysis.run import open_run
from cluster.local import run_job as run_here
from cluster.mapreduce import run_job
from ray_cluster import ray_cluster
from tiny_run import copied, tiny_run

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    with ray_cluster(2) as found:
        yield found


@pytest.fixture(scope="module")
def run(nodes: Cluster, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("run")
    return open_run(copied(tiny_run(), str(folder)).uri)


@pytest.mark.parametrize("weight", ["count", "effect"])
def test_attribution_is_the_same_to_the_last_bit(run, weight) -> None:
    config = AttributionConfig(evidence="target", weight=weight)
    here, there = (attribute(run, runner, config) for runner in (run_here, run_job))
    for name, table in vars(here).items():
        if hasattr(table, "equals"):
            assert table.equals(getattr(there, name)), name
