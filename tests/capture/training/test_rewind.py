"""Removing the last segments of a run.

Law: a run that was rewound to a step holds the files of one that was recorded up to that step.
"""

from pathlib import Path

import pytest
import torch
from custom_loops import TOP, Small, loss_of, tokens, uri
from tiny import contents

from analysis.run.run import open_run
from capture.custom_loop.record import record
from capture.errors import RunError
from capture.format.chain import read_segments
from capture.maintenance.verify import verify
from capture.store import Store, lease
from capture.training.rewind import rewind


def make(where: str, steps: int) -> Store:
    """Record some steps in segments of 2; the last may be shorter."""
    model = Small()
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    with record(
        model, optimizer, run=where, datums=tokens(), outliers=TOP, segment_steps=2
    ) as recorder:
        for step in range(steps):
            loss_of(model, tokens()[step : step + 3]).backward()
            optimizer.step()
            optimizer.zero_grad()
            recorder.evaluation("validation", 1.0 + step)
    return Store(where)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Store]:
    folder = tmp_path_factory.mktemp("whole")
    return {steps: make(uri(folder, f"run{steps}"), steps) for steps in (0, 2, 4, 7)}


@pytest.mark.parametrize("step", [0, 2, 4, 7])
def test_a_rewound_run_is_the_shorter_run(
    step: int, whole: dict[int, Store], tmp_path: Path
) -> None:
    store = make(uri(tmp_path), 7)
    rewind(store, step)
    assert contents(store.uri) == contents(whole[step].uri)
    assert open_run(store.uri).steps_done == step
    assert verify(store) == []
    assert not store.exists(lease.KEY)


def test_a_step_within_a_segment_is_refused(whole: dict[int, Store]) -> None:
    before = contents(whole[7].uri)
    with pytest.raises(RunError, match=r"no segment that ends at step 5; the last .* ends at 4"):
        rewind(whole[7], 5)
    assert contents(whole[7].uri) == before


def test_a_run_that_is_being_recorded_is_refused(tmp_path: Path) -> None:
    store = make(uri(tmp_path), 4)
    with (
        lease.hold_lease(store, lambda event: None),
        pytest.raises(RunError, match="is being captured by process"),
    ):
        rewind(store, 2)
    assert len(read_segments(store)) == 2


@pytest.mark.filterwarnings("default::capture.errors.IncompleteRunWarning")
@pytest.mark.parametrize("deletions", [0, 3, 4, 7])
def test_an_interruption_leaves_a_shorter_run(deletions: int, tmp_path: Path) -> None:
    """Whatever is removed when the process dies, a reader sees whole segments."""
    store = make(uri(tmp_path), 7)
    delete, left = Store.delete, [deletions]

    class Dies(Store):
        def delete(self, key: str) -> None:
            if not left[0] and key != lease.KEY:
                raise ConnectionError("killed")
            left[0] -= key != lease.KEY
            delete(self, key)

    with pytest.raises(ConnectionError):
        rewind(Dies(store.uri), 2)
    assert open_run(store.uri).steps_done in (4, 6, 7)
    rewind(store, 2)
    assert open_run(store.uri).steps_done == 2
