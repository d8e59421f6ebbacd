"""Blocks of shards, as tasks on Ray map them: few, in order, and no other tree for it."""

from hypothesis import given
from hypothesis import strategies as st

from analysis.jobs import merge_all
from cluster.mapreduce import MOST_TASKS, blocks


def nested(a: object, b: object) -> tuple[object, object]:
    """Not associative: shows the tree itself."""
    return (a, b)


@given(st.integers(1, 5000))
def test_blocks_leave_the_tree_as_it_is(count: int):
    dealt = list(blocks(range(count)))  # pyright: ignore[reportArgumentType]
    assert [shard for block in dealt for shard in block] == list(range(count))
    assert len(dealt) <= MOST_TASKS
    assert count > MOST_TASKS or len(dealt) == count
    whole = merge_all((merge_all(iter(block), nested) for block in dealt), nested)
    assert whole == merge_all(iter(range(count)), nested)
