"""Shares of two kinds of outcome: planted shares are found, and equal ones do not differ."""

import numpy as np
import pandas as pd
import pytest

from analysis.transitions.runs.shares import find_shares, p_of_shares
from analysis.transitions.runs.stability import find_outcomes
from analysis.transitions.runs.tables import FINAL, SHARES
from capture.config.settings import Config
from capture.errors import ConfigError
from cluster.local.seeded_runs import seeded_configs

RUNS = 20


def values(shares: list[float], rng: np.random.Generator, drift: float = 0.0) -> pd.DataFrame:
    """Runs around 0 and 1 (plus a drift per group), with these shares of the upper kind."""
    rows = []
    for group, share in enumerate(shares):
        upper_R = np.arange(RUNS) < round(share * RUNS)
        value_R = upper_R + drift * group + rng.normal(0, 0.05, RUNS)
        names = {"group": f"model.width={8 * 2**group}", "metric": "accuracy", "component": ""}
        runs = [f"run{group}-{k}" for k in range(RUNS)]
        rows.append(pd.DataFrame(names | {"quantity": FINAL, "run": runs, "value": value_R}))
    return pd.concat(rows, ignore_index=True)


def found_in(shares: list[float], seed: int = 0, drift: float = 0.0) -> pd.DataFrame:
    given = values(shares, np.random.default_rng(seed), drift)
    return find_shares(given, find_outcomes(given), seed=seed)


def test_planted_shares_are_found_with_intervals_and_differ():
    found = found_in([0.1, 0.5, 0.9], drift=0.05)
    assert found["upper_share"].tolist() == [0.1, 0.5, 0.9]
    assert found["boundary"].nunique() == 1
    assert ((found["low"] < found["upper_share"]) & (found["upper_share"] < found["high"])).all()
    assert found["q"].max() < 0.01
    assert found.columns.tolist() == SHARES.names


def test_one_kind_of_outcome_has_no_shares():
    rng = np.random.default_rng(0)
    given = values([0.0, 0.0], rng)
    assert not len(find_shares(given, find_outcomes(given), seed=0))


def test_law_14_equal_shares_differ_in_about_5_percent_of_samples():
    group_R = np.repeat(["a", "b", "c"], RUNS)
    rng = np.random.default_rng(1)
    p_D = [p_of_shares(rng.random(len(group_R)) < 0.4, group_R, rng) for _ in range(60)]
    assert np.mean(np.array(p_D) <= 0.05) <= 0.12


def test_an_axis_makes_a_run_for_each_value_and_seed():
    made = seeded_configs(Config(), [0, 3], "weights", "model.width=40,80")
    assert [own.run.uri for own in made] == [
        f"runs/run-seeds/model.width-{width}/weights-{seed}"
        for width in (40, 80)
        for seed in (0, 3)
    ]
    assert [(own.model.width, own.weight_seed, own.run.seed) for own in made[1:3]] == [
        (40, 3, 0),
        (80, 0, 0),
    ]


@pytest.mark.parametrize(
    ("axis", "text"),
    [
        ("model.width", "must be KEY=VALUE,VALUE"),
        ("model.width=8", "must be KEY=VALUE,VALUE"),
        ("model.width=8,8", "must be KEY=VALUE,VALUE"),
        ("model.width=8,../9", "must be KEY=VALUE,VALUE"),
        ("run.seed=1,2", "which each run has for itself"),
        ("model.widht=8,16", "unknown key"),
        ("model.width=8,x", "must be a whole number"),
    ],
)
def test_an_axis_that_is_none_is_refused(axis: str, text: str):
    with pytest.raises(ConfigError, match=text):
        seeded_configs(Config(), [0, 1], "seed", axis)
