"""The study of turning points: where a loss jumps, and which turns lie near a jump."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchmarks.studies.turning_points import at_a_turn, jumps, share_near, turning_points


def turn(step: int, p: float) -> dict[str, Any]:
    return {"metric": "logit_components", "step": step, "p": p, "angle": 90.0}


OWN = {
    "steps": list(range(0, 2001, 100)),
    "jumps": [790, 1500],
    "turns": [turn(900, 0.005), turn(400, 0.03), turn(1500, 0.2)],
}


def test_a_jump_is_a_loss_far_above_its_median_and_is_counted_once() -> None:
    loss_S = np.full(1200, 1e-4) * np.geomspace(1, 0.1, 1200)
    loss_S[100] = 1.0  # still learning
    loss_S[600:608] = 0.5
    loss_S[630] = 0.1  # the same jump
    loss_S[900] = 0.2
    run: Any = SimpleNamespace(steps=lambda: pd.DataFrame({"loss": loss_S}))
    assert jumps(run) == [600, 900]


def test_only_turns_that_are_claimed_lie_at_a_jump() -> None:
    assert [each["step"] for each in turning_points(OWN, "logit_components")] == [400, 900]
    assert at_a_turn(OWN, "logit_components") == [True, False]
    assert at_a_turn(OWN, "loss_components") == [False, False]


def test_the_share_of_steps_near_a_turn_is_that_of_the_steps_counted_one_by_one() -> None:
    near = [step for step in range(300, 2000) if abs(step - 400) <= 200 or abs(step - 900) <= 200]
    assert share_near(OWN, "logit_components") == pytest.approx(len(near) / 1700)
    assert share_near(OWN, "loss_components") == 0
