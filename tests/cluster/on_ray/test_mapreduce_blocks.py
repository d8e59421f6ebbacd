"""Blocks of shards for tasks on Ray: few, in order, and with the same merge tree."""

from hypothesis import given
from hypothesis import strategies as st

from analysis.jobs.job import merge_all
from cluster.on_ray.mapreduce import split_into_blocks
from cluster.on_ray.policy import max_tasks


def nested(a: object, b: object) -> tuple[object, object]:
    """A merge that is not associative, so that its result shows the tree."""
    return (a, b)


@given(st.integers(1, 5000), st.integers(1, 500))
def test_blocks_leave_the_merge_tree_unchanged(count: int, most: int):
    dealt = list(split_into_blocks(range(count), most))  # pyright: ignore[reportArgumentType]
    assert [shard for block in dealt for shard in block] == list(range(count))
    assert len(dealt) <= most
    assert count > most or len(dealt) == count
    whole = merge_all((merge_all(iter(block), nested) for block in dealt), nested)
    assert whole == merge_all(iter(range(count)), nested)


@given(st.integers(0, 100_000))
def test_the_number_of_tasks_grows_with_cores_and_is_bounded(cpus: int):
    assert min(4096, 8 * max(1, cpus)) == max_tasks(cpus)
    assert max_tasks(cpus) <= max_tasks(cpus + 1)
