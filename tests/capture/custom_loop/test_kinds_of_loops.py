"""Kinds of custom training loops: each is recorded exactly, or refused by name, never wrong."""

import pytest
from exact_loops import EXACT
from loop_session import Session


@pytest.mark.parametrize("name", EXACT)
def test_recorded_gradients_are_those_of_passes_of_one_datum_each(tmp_path, name):
    session = Session(tmp_path)
    EXACT[name](session)
    assert session.largest_error() < 1e-6
