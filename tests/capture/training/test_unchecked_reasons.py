"""A segment says once what could not be checked, whichever worker found it."""

from capture.engine.split import UNCHECKED
from capture.format.markers import MAX_REASONS
from capture.training.worker_files import joint_reasons

STEPS = f"{UNCHECKED}: no call of the model led to the loss"
ROWS = "rows hold tokens with which several datums begin"


def test_steps_that_workers_take_together_count_once_and_rows_add_up():
    assert joint_reasons([{STEPS: 2, ROWS: 5}, {STEPS: 3}, {ROWS: 1}]) == {STEPS: 3, ROWS: 6}


def test_what_one_process_could_not_check_stays_as_it_is():
    assert joint_reasons([{}]) == {}
    assert joint_reasons([{STEPS: 2, ROWS: 5}]) == {STEPS: 2, ROWS: 5}


def test_no_more_reasons_are_kept_than_a_marker_can_hold():
    found = [{f"reason {worker} {number}": 1 for number in range(9)} for worker in range(3)]
    assert len(joint_reasons(found)) == MAX_REASONS
