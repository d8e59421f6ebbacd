"""Order, coincidence, warnings and hidden states of curves whose answers are known."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.transitions.curves import Curve
from analysis.transitions.shape.half import Half, find_half
from analysis.transitions.shape.shapes import shapes_of
from analysis.transitions.shape.sudden import walks
from analysis.transitions.tables import CONSTANT, GRADUAL, SUDDEN, UNCHANGED
from analysis.transitions.timing import states
from analysis.transitions.timing.order import (
    find_coincidence,
    find_order,
    find_warnings,
    mean_ends,
)
from analysis.transitions.timing.state_tables import features_of, state_tables, visitors_later
from analysis.transitions.timing.states import find_states, fit_all

U = np.linspace(0, 8, 33)
STEPS = np.expm1(U)


def by(table: pd.DataFrame, *columns: str) -> dict[Any, dict[Any, Any]]:
    """Return the rows of a table by one column or several."""
    rows = table.to_dict("records")
    keys = [[row[name] for name in columns] for row in rows]
    single = len(columns) == 1
    return {key[0] if single else tuple(key): row for key, row in zip(keys, rows, strict=True)}


def curve(value, metric: str = "m") -> Curve:
    ones = np.ones(len(U))
    return Curve(metric, "", STEPS, np.asarray(value, float), 0 * ones, ones)


def logistic(at: float, scale: float, metric: str, seed: int = 0, noise: float = 0.01) -> Curve:
    rng = np.random.default_rng([seed, *metric.encode()])
    return curve(1 / (1 + np.exp(-(U - at) / scale)) + noise * rng.standard_normal(len(U)), metric)


def halves(*curves: Curve, seed: int = 0) -> dict[str, Half]:
    rng = np.random.default_rng(seed)
    return {each.name: find_half(each, 99, rng) for each in curves}


def names(*curves: Curve) -> dict[str, tuple[str, str]]:
    return {each.name: (each.metric, each.component) for each in curves}


def test_the_verdicts_of_a_jump_a_slow_curve_and_noise():
    rng = np.random.default_rng(0)
    curves = [
        logistic(5.1, 0.02, "jump"),
        logistic(4, 1.0, "slow"),
        curve(rng.standard_normal(len(U)), "noise"),
        curve(np.ones(len(U)), "constant"),
    ]
    found = shapes_of("runs/a", curves, draws=199, seed=0)
    assert found.curves["verdict"].tolist() == [SUDDEN, GRADUAL, UNCHANGED, CONSTANT]
    assert set(found.halves) == {"jump", "slow"}
    assert (found.curves["q"].dropna() >= found.curves["p_walk"].dropna()).all()
    again = shapes_of("runs/a", curves[::-1], draws=199, seed=0).curves.iloc[::-1]
    columns = ["half_low", "share", "p_smooth", "p_walk"]
    np.testing.assert_array_equal(again[columns].to_numpy(), found.curves[columns].to_numpy())


def test_order_is_that_of_the_curves_and_close_ones_are_together():
    curves = [logistic(5.05, 0.3, "c"), logistic(3, 0.3, "a"), logistic(5, 0.3, "b")]
    found = find_order([halves(*curves)], names(*curves), seed=0)
    pairs = by(found, "metric", "other_metric")
    relations = {pair: row["relation"] for pair, row in pairs.items()}
    assert [relations["a", "b"], relations["a", "c"]] == ["before"] * 2
    (last,) = [value for pair, value in relations.items() if "a" not in pair]
    assert last == "together"
    assert pairs["a", "b"]["low"] < np.exp(2) < pairs["a", "b"]["high"]


def test_law_14_curves_of_one_law_have_an_order_in_at_most_5_percent():
    ordered = 0
    for seed in range(60):
        pair = [logistic(5, 0.5, name, seed, noise=0.05) for name in "ab"]
        table = find_order([halves(*pair, seed=seed)], names(*pair), seed=seed)
        ordered += int((table["relation"] != "together").sum())
    assert ordered <= 3


def test_runs_widen_the_interval_where_they_disagree():
    def pair(gap: float) -> tuple[Half, Half]:
        found = halves(logistic(4, 0.1, "a"), logistic(4 + gap, 0.1, "b"))
        return found["a"], found["b"]

    agree, differ = (
        find_order(
            [{"a": a, "b": b} for a, b in map(pair, gaps)], {k: (k, "") for k in "ab"}, seed=0
        ).iloc[0]
        for gaps in ([1, 1, 1], [0, 1, 2])
    )
    assert np.log(differ["high"] / differ["low"]) > 2 * np.log(agree["high"] / agree["low"])


@pytest.mark.parametrize("count", [2, 3, 5])
def test_law_the_interval_of_an_order_over_few_runs_holds_the_mean_in_95_percent(count: int):
    rng = np.random.default_rng(count)
    value_NR = rng.standard_normal((2000, count))
    draw_NRD = value_NR[..., None] + rng.uniform(-0.01, 0.01, (2000, count, 99))
    ends_N2 = np.array([mean_ends(v, d) for v, d in zip(value_NR, draw_NRD, strict=True)])
    assert 0.93 <= np.mean((ends_N2[:, 0] <= 0) & (ends_N2[:, 1] >= 0)) <= 0.97
    wide_RD = rng.uniform(-1, 1, (count, 999))  # runs that agree are known up to their brackets
    low, high = mean_ends([0.0] * count, wide_RD)
    assert (low, high) == tuple(np.quantile(wide_RD.mean(0), [0.025, 0.975]))


def test_a_warning_leads_the_target_by_the_planted_number_of_steps():
    target, early, late = (
        logistic(7, 0.2, "t"),
        logistic(6, 0.2, "early"),
        logistic(7.5, 0.2, "late"),
    )
    every = (target, early, late)
    found = by(find_warnings([halves(*every)], names(*every), "t", seed=0), "metric")
    planted = np.expm1(7) - np.expm1(6)
    assert found["early"]["lead_low"] < planted < found["early"]["lead_high"]
    assert (found["early"]["earlier"], found["late"]["earlier"]) == (True, False)
    assert np.isnan(found["early"]["p"])


def test_an_early_curve_goes_with_an_early_target_over_runs_only_if_it_does():
    rng = np.random.default_rng(0)
    at = rng.uniform(5, 7, 12)
    tied, free = ([], [])
    for k, place in enumerate(at):
        target = logistic(place, 0.1, "t", k)
        tied.append(halves(target, logistic(place - 1, 0.1, "a", k)))
        free.append(halves(target, logistic(rng.uniform(4, 6), 0.1, "a", k)))
    both = {"t": ("t", ""), "a": ("a", "")}
    p = [find_warnings(runs, both, "t", seed=0)["p"].item() for runs in (tied, free)]
    assert p[0] <= 0.01 < p[1]


def test_a_curve_coincides_with_the_loss_that_falls_with_it_alone():
    loss = curve(3 - logistic(6, 0.1, "x").value_K, "loss")
    curves = [loss, logistic(6, 0.1, "with"), logistic(3, 0.1, "without")]
    shapes = shapes_of("r", curves, draws=99, seed=0)
    found = by(find_coincidence("r", curves, shapes.halves, shapes.curves, loss), "metric")
    assert found["with"]["loss_share"] > 0.4 > 0.1 > found["with"]["p"]
    assert found["without"]["loss_share"] < 0.1
    assert (found["with"]["relation"], found["without"]["relation"]) == ("together", "before")


# --- hidden states --------------------------------------------------------------------------------


def phases(seed: int, visits: tuple[int, ...]) -> list[Curve]:
    """Two metrics whose level depends on the state."""
    level = np.array([[0.0, 4.0], [4.0, 4.0], [4.0, 0.0], [0.0, 0.0]])
    state = np.repeat(visits, len(U) // len(visits) + 1)[: len(U)]
    rng = np.random.default_rng(seed)
    return [curve(level[state, m] + 0.3 * rng.standard_normal(len(U)), f"m{m}") for m in (0, 1)]


def test_planted_states_are_found_in_order_with_their_map():
    runs = [phases(seed, (0, 1, 2)) for seed in range(3)]
    features, found_names = features_of(runs)  # pyright: ignore[reportGeneralTypeIssues]
    found = find_states(features, 5, seed=0)
    assert found.mean_SM.shape == (3, 2)
    wanted = np.tile(np.repeat([0, 1, 2], 12)[: len(U)], 3)
    assert (found.state_T == wanted).mean() > 0.97
    tables = state_tables("abc", features, found_names, found, np.full(3, np.nan), seed=0)
    moves = tables["state_changes"]
    moves = moves[moves["state"] != moves["next"]].set_index(["state", "next"])["count"]
    assert moves.to_dict() == {(0, 1): 3, (1, 2): 3}
    assert tables["state_choice"].set_index("states")["chosen"].idxmax() == 3
    assert tables["state_choice"]["null_chosen"].sum() == 5
    assert tables["state_summary"]["detour"].tolist() == [False] * 3


def test_a_fit_that_lost_its_numbers_does_not_count(monkeypatch: pytest.MonkeyPatch):
    features, _ = features_of([phases(0, (0, 1, 2))])  # pyright: ignore[reportGeneralTypeIssues]
    monkeypatch.setattr(states, "vanished", lambda model: model.n_components == 3)
    assert sorted(fit_all(features, 4, seed=0)) == [1, 2, 4]
    lost = SimpleNamespace(startprob_=np.array([np.nan]), transmat_=1, means_=0, covars_=1)
    monkeypatch.undo()
    assert states.vanished(lost)


def test_a_walk_is_cut_into_states_too_and_the_null_says_so():
    rng = np.random.default_rng(0)
    runs = [[curve(each, f"m{m}") for m, each in enumerate(walks(U, 3, rng))]]
    features, _ = features_of(runs)  # pyright: ignore[reportGeneralTypeIssues]
    found = find_states(features, 4, seed=0)
    assert len(found.mean_SM) > 1
    assert min(found.null_states) > 1


def test_a_detour_is_a_state_whose_visitors_are_later():
    rng = np.random.default_rng(0)
    visits = np.arange(12) < 6
    slower, p = visitors_later(rng.normal(5, 0.1, 12) + 1.0 * visits, visits, rng)
    assert slower == pytest.approx(np.e, rel=0.2)
    assert p <= 0.01
    none = [visitors_later(rng.normal(size=12), visits, rng)[1] <= 0.05 for _ in range(60)]
    assert np.mean(none) <= 0.12
    assert np.isnan(visitors_later(np.ones(3), np.array([True] * 3), rng)[1])
