"""Tables of hidden states: where each run is, how states follow each other, and detours.

A detour (Hu et al. 2023) is a state that some runs visit and others do not, and whose visitors make
half of the target's change later. The null exchanges runs.

Shapes: T point (of all runs), R run, S state.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.measures.permutation import p_value
from analysis.transitions.curves import MIN_POINTS, Curve
from analysis.transitions.shape.shapes import ALPHA, adjusted
from analysis.transitions.tables import (
    STATE_CHANGES,
    STATE_CHOICE,
    STATE_MEANS,
    STATE_SUMMARY,
    STATES,
)
from analysis.transitions.timing.states import Features, HiddenStates, runs_of, standardise

PERMUTATIONS = 999
FEWEST_METRICS = 2
"""If fewer curves describe the whole model, those of components are taken too."""
Tables = dict[str, pd.DataFrame]


def features_of(runs: Sequence[Sequence[Curve]]) -> tuple[Features, list[tuple[str, str]]] | None:
    """Return the standardised curves that all runs have, and their names; None without any.

    All are interpolated at the steps of the curve with the fewest points.
    """
    names = [{curve.name: curve for curve in curves if tested(curve)} for curves in runs]
    shared = [name for name in names[0] if all(name in own for own in names)]
    whole = [name for name in shared if not names[0][name].component]
    shared = whole if len(whole) >= FEWEST_METRICS else shared
    if not shared:
        return None
    parts, steps, lengths = [], [], []
    for own in names:
        grid = min((own[name] for name in shared), key=lambda curve: len(curve.u_K))
        columns = [np.interp(grid.u_K, own[name].u_K, own[name].value_K) for name in shared]
        parts.append(np.stack(columns, 1))
        steps.append(grid.step_K)
        lengths.append(len(grid.u_K))
    found = Features(standardise(np.concatenate(parts)), np.concatenate(steps), lengths)
    return found, [(names[0][name].metric, names[0][name].component) for name in shared]


def tested(curve: Curve) -> bool:
    return curve.changes and len(curve.u_K) >= MIN_POINTS


def state_tables(
    uris: Sequence[str],
    features: Features,
    names: Sequence[tuple[str, str]],
    found: HiddenStates,
    target_R: np.ndarray,
    *,
    seed: int,
) -> Tables:
    """Return the five tables of states; ``target_R`` is each run's half step, NaN for none."""
    run_T = runs_of(features.length_R)
    states = pd.DataFrame(
        {
            "run": np.array(list(uris), object)[run_T],
            "step": features.step_T,
            "state": found.state_T,
            "probability": found.probability_T,
        },
        columns=pd.Index(STATES.names),
    )
    means = [
        (state, *name, found.mean_SM[state, m], found.spread_SM[state, m])
        for state in range(len(found.mean_SM))
        for m, name in enumerate(names)
    ]
    best = min(found.bic, key=lambda count: found.bic[count])
    choice = [(k, bic, k == best, found.null_states.count(k)) for k, bic in found.bic.items()]
    return {
        "states": states,
        "state_means": pd.DataFrame(means, columns=pd.Index(STATE_MEANS.names)),
        "state_changes": changes(found, run_T, features.step_T),
        "state_summary": summary(found.state_T, run_T, target_R, seed=seed),
        "state_choice": pd.DataFrame(choice, columns=pd.Index(STATE_CHOICE.names)),
    }


def changes(found: HiddenStates, run_T: np.ndarray, step_T: np.ndarray) -> pd.DataFrame:
    """Return ``STATE_CHANGES``: the transition map, over the pairs of states that occur or may."""
    same_run = run_T[1:] == run_T[:-1]
    left, right, when = (
        found.state_T[:-1][same_run],
        found.state_T[1:][same_run],
        step_T[1:][same_run],
    )
    rows = []
    for state in range(len(found.mean_SM)):
        for after in range(len(found.mean_SM)):
            met = (left == state) & (right == after)
            if met.any() or found.change_SS[state, after] > 1e-3:
                first = when[met].min() if met.any() else np.nan
                rows.append((state, after, int(met.sum()), found.change_SS[state, after], first))
    return pd.DataFrame(rows, columns=pd.Index(STATE_CHANGES.names))


def summary(
    state_T: np.ndarray, run_T: np.ndarray, target_R: np.ndarray, *, seed: int
) -> pd.DataFrame:
    """Return ``STATE_SUMMARY``, with a test of every state that some runs leave out."""
    rng = np.random.default_rng([seed, 4])
    rows: list[dict[str, Any]] = []
    for state in range(int(state_T.max()) + 1):
        visits_R = np.array(
            [(state_T[run_T == run] == state).any() for run in range(len(target_R))]
        )
        slower, p = visitors_later(np.log1p(target_R), visits_R, rng)
        rows.append(
            {
                "state": state,
                "occupancy": float((state_T == state).mean()),
                "runs": int(visits_R.sum()),
                "runs_without": int((~visits_R).sum()),
                "slower": slower,
                "p": p,
            }
        )
    table = pd.DataFrame(rows, columns=pd.Index(STATE_SUMMARY.names))
    table["q"] = adjusted(table["p"].to_numpy(np.float64))
    return table.assign(detour=(table["q"] <= ALPHA) & (table["slower"] > 1))


def visitors_later(
    log_step_R: np.ndarray, visits_R: np.ndarray, rng: np.random.Generator
) -> tuple[float, float]:
    """Return by which factor visitors are later, and the p of a permutation of runs.

    Both are NaN if no run, or every run, is a visitor.
    """
    known_R = np.isfinite(log_step_R)
    value_R, visits_R = log_step_R[known_R], visits_R[known_R]
    if visits_R.all() or not visits_R.any():
        return np.nan, np.nan

    def later(chosen_R: np.ndarray) -> float:
        return float(value_R[chosen_R].mean() - value_R[~chosen_R].mean())

    found = later(visits_R)
    null = [later(rng.permutation(visits_R)) for _ in range(PERMUTATIONS)]
    return float(np.exp(found)), p_value(found, null)
