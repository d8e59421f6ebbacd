"""Kinds of custom training loops: each is recorded exactly, or refused by name, never wrong."""

import re
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from kinds_of_loops import EXACT, REFUSED, SLOW
from loop_session import Session, Unrecorded

SHARE = r"\d% of the model|trains no parameter of the model"
"""What an error about a parameter, or an optimizer, says of its size."""


def marked(names: Iterable[str]) -> list[Any]:
    return [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in names]


@pytest.mark.parametrize("name", marked(EXACT))
def test_recorded_gradients_are_those_of_passes_of_one_datum_each(tmp_path, name):
    session, plain = Session(tmp_path), Unrecorded(tmp_path)
    for each in (session, plain):
        EXACT[name](each)
    pairs = zip(session.model.parameters(), plain.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)  # recording changes nothing
    assert session.largest_error() < 1e-6


@pytest.mark.parametrize("name", marked(REFUSED))
def test_other_kinds_of_loops_are_refused_in_one_line_that_names_the_cause(tmp_path, name):
    loop, error, message = REFUSED[name]
    session = Session(tmp_path)
    with pytest.raises(error, match=re.escape(message)) as raised:
        loop(session)
    assert "\n" not in str(raised.value)
    parameters = dict(session.model.named_parameters())
    if raised.value.where in {"optimizer", "units", *parameters}:
        assert re.search(SHARE, raised.value.problem), raised.value
