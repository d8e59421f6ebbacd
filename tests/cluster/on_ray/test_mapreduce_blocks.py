"""Blocks of shards, as tasks on Ray map them: few, in order, and no other tree for it."""

from hypothesis import given
from hypothesis import strategies as st

from analysis.jobs.job import merge_all
from cluster.on_ray.mapreduce import split_into_blocks
from cluster.on_ray.policy import max_tasks


def nested(a: object, b: object) -> tuple[object, object]:
    """Not associative: shows the tree itself."""
    return (a, b)


@given(st.integers(1, 5000), st.integers(1, 500))
def test_blocks_leave_the_tree_as_it_is(count: int, most: int):
    dealt = list(split_into_blocks(range(count), most))  # pyright: ignore[reportArgumentType]
    assert [shard for block in dealt for shard in block] == list(range(count))
    assert len(dealt) <= most
    assert count > most or len(dealt) == count
    whole = merge_all((merge_all(iter(block), nested) for block in dealt), nested)
    assert whole == merge_all(iter(range(count)), nested)


@given(st.integers(0, 100_000))
def test_tasks_are_enough_for_every_core_and_bounded(cpus: int):
    assert min(4096, 8 * max(1, cpus)) == max_tasks(cpus)
    assert max_tasks(cpus) <= max_tasks(cpus + 1)
