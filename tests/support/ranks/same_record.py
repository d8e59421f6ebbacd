"""Assert that several ranks recorded what one process recorded."""

import pandas as pd
from numpy.testing import assert_allclose
from same_runs import by_key, read_all, same_tables, same_weights

from analysis.run.run import open_run
from capture.maintenance.verify import verify
from capture.store import Store


def same_record(wanted: str, found: str, loss: float) -> None:
    """Assert that two runs agree: tables, gradients of all datums, weights; all files verified."""
    assert verify(Store(found)) == []
    assert not Store(found).exists("lease.json")
    ours, theirs = (read_all(each, "steps").sort_values("step") for each in (wanted, found))
    assert_allclose(theirs.pop("loss"), ours.pop("loss"), rtol=loss)
    if loss > 1e-3:
        return
    same_tables(ours.drop(columns="batch"), theirs.drop(columns="batch"))  # resuming begins at 0
    same_outliers(by_key(read_all(wanted, "outliers")), by_key(read_all(found, "outliers")))
    same_gradients(wanted, found)
    same_weights(wanted, found)


def same_outliers(ours: pd.DataFrame, theirs: pd.DataFrame) -> None:
    """Assert that outliers agree; rounding decides between positions with the same token."""
    differ = ours.pop("position").to_numpy() != theirs.pop("position").to_numpy()
    assert differ.mean() < 0.01
    same_tables(ours, theirs)


def same_gradients(wanted: str, found: str) -> None:
    """Assert that factors, which each rank stores for its own datums, give the same gradients."""
    if not Store(wanted).keys("factors"):
        return
    one, other = open_run(wanted), open_run(found)
    for step in (0, one.steps_done - 1):
        for datum in one.steps()["datums"].iloc[step]:
            for unit in one.layout.names:
                gradient = one.gradient(step, int(datum), unit)
                again = other.gradient(step, int(datum), unit)
                assert_allclose(again, gradient, rtol=2e-3, atol=1e-6)
