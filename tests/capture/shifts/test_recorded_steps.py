"""Chosen steps of a record, against a listing of them."""

import pytest

from capture.errors import ConfigError
from capture.shifts.recorded_steps import any_chosen, require_entries

MOST = 300
LISTED = {
    "0-9": set(range(10)),
    "17": {17},
    "every:7": set(range(0, MOST, 7)),
    "log:4": {0, *(round(10 ** (i / 4)) for i in range(10))},
    "log:40": {0, *(round(10 ** (i / 40)) for i in range(100))},
}


@pytest.mark.parametrize("entry", LISTED)
def test_a_segment_is_chosen_if_it_holds_a_listed_step(entry):
    for first in range(250):
        for steps in (range(first, first + 1), range(first, first + 9)):
            assert any_chosen([entry], steps) == bool(LISTED[entry] & set(steps)), steps


def test_entries_add_up_and_none_choose_all():
    assert any_chosen([], range(5, 6))
    assert any_chosen(["1-2", "every:5"], range(5, 6))
    assert not any_chosen(["1-2", "every:5"], range(6, 9))


@pytest.mark.parametrize("entry", ["", "9-3", "every:0", "log:0", "every:x", "each:3", "-4", "1,2"])
def test_other_entries_are_refused(entry):
    with pytest.raises(ConfigError, match="Write steps and ranges") as error:
        require_entries(["0-9", entry], "capture.outliers.steps")
    assert error.value.args[0] == "capture.outliers.steps"
