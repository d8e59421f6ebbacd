"""Segments of path influence give the same numbers wherever and whenever they are taken."""

import pickle
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import numpy as np
import pytest
from path_steps import path_steps
from tiny_run import copied, make_run

from analysis.influence.config import InfluenceConfig
from analysis.influence.finished_segments import FinishedSegments
from analysis.influence.influence import compute_influence, discard_unfinished
from analysis.influence.path_segments import is_possible
from analysis.influence.queries.parsing import build_queries
from analysis.influence.tables import Influence
from analysis.run.run import Run, open_run
from capture.unrolled.states import BackwardWalker

PATH = InfluenceConfig(method="path")
ASKED = ({"prompt": "w1 w3", "completion": "w4"}, "datum:validation:0")
SETTINGS = ("training.epochs=1", "training.batch=8", "capture.segment_steps=2")


@pytest.fixture(scope="module")
def run() -> Run:
    decay = "training.optimizer.weight_decay=0.1"
    return open_run(make_run("memory://segments/sgd", *SETTINGS, decay))


def answer(run: Run, machines: Any = None, *, resumable: bool = False) -> Influence:
    queries = build_queries(run, ASKED)
    return compute_influence(run, queries, PATH, resumable=resumable, machines=machines)


def assert_same(found: Influence, wanted: Influence) -> None:
    for name, table in vars(wanted).items():
        again = getattr(found, name)
        for column in table.select_dtypes("number"):
            np.testing.assert_array_equal(again[column], table[column])


def by_copies(work: Any, items: Sequence[Any]) -> Iterator[Any]:
    """What machines do: each gets a copy of the work, the last item comes first."""
    done = {item: pickle.loads(pickle.dumps(work))(item) for item in reversed(items)}
    return (pickle.loads(pickle.dumps(done[item])) for item in items)


def test_other_machines_give_the_same_numbers(run: Run) -> None:
    assert_same(answer(run, by_copies), answer(run))


def test_influences_are_those_of_one_sweep(run: Run) -> None:
    """Within what the quadrature leaves, which may take other points."""
    found, queries = answer(run), build_queries(run, ASKED)
    wanted_QD = np.zeros((2, run.num_datums))
    for step in path_steps(run, queries, range(run.steps_done)):
        for slot, datum in enumerate(step.datum_N):
            wanted_QD[:, datum] += step.influence_QNT[:, slot].sum(1)
    own = found.datums.pivot(index="query", columns="datum", values="influence")
    found_QD = own.loc[found.queries["query"]].to_numpy()
    np.testing.assert_allclose(found_QD, wanted_QD, atol=1e-3 * np.abs(wanted_QD).max())
    assert (found.queries["incompleteness"] < 1e-4).all()


def test_momentum_ties_segments_together(run: Run) -> None:
    tied = open_run(
        make_run("memory://segments/momentum", *SETTINGS, "training.optimizer.momentum=0.9")
    )
    assert is_possible(run, "path")
    assert not is_possible(run, "unrolled")
    assert not is_possible(tied, "path")


def test_a_killed_job_takes_only_the_segments_that_are_missing(run: Run) -> None:
    place = open_run(copied(run.uri, "memory://segments/killed").uri)
    keep, kept = FinishedSegments.keep_steps, []

    def killed(*given: Any) -> None:
        keep(*given)
        kept.append(given)
        if len(kept) == 2:
            raise KeyboardInterrupt

    with (
        mock.patch.object(FinishedSegments, "keep_steps", killed),
        pytest.raises(KeyboardInterrupt),
    ):
        answer(place, resumable=True)
    taken: list[int] = []
    take = BackwardWalker.take_one

    def watched(walker: BackwardWalker, planned: Any, *given: Any) -> Any:
        taken.append(planned.step)
        return take(walker, planned, *given)

    with mock.patch.object(BackwardWalker, "take_one", watched):
        found = answer(place, resumable=True)
    assert sorted(set(taken)) == list(range(run.steps_done - 4))
    assert_same(found, answer(run))
    discard_unfinished(place)
    assert not place.store.keys("analysis/influence")
