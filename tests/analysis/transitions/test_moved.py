"""Datums and neurons that stand out in a window: planted ones are found, drifts are not."""

import functools

import numpy as np
import pandas as pd
import pytest
from tiny_run import copied, tiny_run

from analysis.jobs.question import Question
from analysis.jobs.tables import write_tables
from analysis.run.run import Run, open_run
from analysis.spectra.tables import SCHEMAS as SPECTRUM
from analysis.transitions.moved.activity import ActivityJob, Sums
from analysis.transitions.moved.directions import directions_of
from analysis.transitions.moved.movers import find_movers, neurons_of, window_of
from analysis.transitions.moved.standing_out import Entries, null_windows, stand_out
from cluster.local.threads import run_job

STEPS, NEURONS = 200, 30
WINDOW = range(90, 110)
MOST_OF_60 = 6
"""97 % of binomial counts of 60 at 5 % are no larger."""


def dense(value_SN: np.ndarray) -> Entries:
    step, number = np.nonzero(np.ones_like(value_SN))
    return Entries(Sums.of(step, number, value_SN.ravel()), value_SN.shape[1], len(value_SN), True)


def correlated(rng: np.random.Generator) -> np.ndarray:
    """AR(1) noise about a level of each neuron, and a trend."""
    noise = rng.standard_normal((STEPS, NEURONS))
    for step in range(1, STEPS):
        noise[step] += 0.7 * noise[step - 1]
    trend = np.linspace(0, 1, STEPS)[:, None] * rng.normal(0, 3, NEURONS)
    return rng.uniform(5, 10, NEURONS) + 0.5 * noise + trend


def test_planted_neurons_stand_out_and_no_others():
    value = correlated(np.random.default_rng(0))
    value[WINDOW.start : WINDOW.stop, [3, 7]] += 4
    found = stand_out(dense(value), WINDOW)
    assert found is not None
    assert set(found[found["q"] <= 0.05]["number"]) == {3, 7}


def answered(found: list[pd.DataFrame | None]) -> list[pd.DataFrame]:
    """Return the answers; all must be there, else the law says nothing."""
    tables = [each for each in found if each is not None]
    assert len(tables) == len(found)
    return tables


def test_law_14_correlated_noise_and_trends_stand_out_in_at_most_5_percent_of_runs():
    found = [stand_out(dense(correlated(np.random.default_rng(k))), WINDOW) for k in range(60)]
    assert sum((each["q"] <= 0.05).any() for each in answered(found)) <= MOST_OF_60


def datums(rng: np.random.Generator, batch: int = 4, epochs: int = 4) -> tuple[Entries, np.ndarray]:
    """Every datum once an epoch; the share of a datum is its level and noise."""
    count = STEPS * batch // epochs
    order = np.concatenate([rng.permutation(count) for _ in range(epochs)])
    step = np.repeat(np.arange(STEPS), batch)
    value = rng.lognormal(0, 0.3, count)[order] * rng.lognormal(0, 0.2, len(order))
    entries = Entries(Sums.of(step, order, value), count, STEPS, False)
    return entries, order


def test_a_datum_that_moved_more_in_the_window_stands_out():
    entries, order = datums(np.random.default_rng(1))
    planted = order[WINDOW.start * 4 + 2]
    own = (entries.sums.number_E == planted) & (entries.sums.step_E >= WINDOW.start)
    entries.sums.sum_E[own & (entries.sums.step_E < WINDOW.stop)] += 8
    found = stand_out(entries, WINDOW)
    assert found is not None
    assert found[found["q"] <= 0.05]["number"].tolist() == [planted]


def test_law_14_datums_of_one_law_stand_out_in_at_most_5_percent_of_runs():
    found = [stand_out(datums(np.random.default_rng(k))[0], WINDOW) for k in range(60)]
    assert sum((each["q"] <= 0.05).any() for each in answered(found)) <= MOST_OF_60


def test_a_window_that_leaves_no_room_gives_no_answer():
    assert stand_out(dense(np.ones((10, 2))), range(1, 9)) is None
    for at_an_end in (range(2), range(28, 30)):  # one side alone is no test of both
        assert stand_out(dense(np.ones((30, 2))), at_an_end) is None
    for other in null_windows(WINDOW, STEPS):
        assert len(other) == len(WINDOW)
        assert not set(other) & set(WINDOW)
        assert 0 < other.start < other.stop < STEPS


@pytest.mark.parametrize(("first", "end", "wanted"), [(3.2, 5.1, range(3, 6)), (0, 0, range(0, 1))])
def test_a_window_of_the_curve_is_one_of_steps(first: float, end: float, wanted: range):
    assert window_of(first, end, 20) == wanted


# --- the record -----------------------------------------------------------------------------------


@functools.cache
def job() -> ActivityJob:
    run = open_run(tiny_run())
    return ActivityJob(run.layout, run.num_datums, neurons_of(run), run.steps_done)


def test_shares_are_those_of_a_loop_over_the_rows():
    run = open_run(tiny_run())
    found = run_job(job(), run.shards("outliers"))
    rows = run.shifts()
    size = rows["abs_diff"].astype(np.float64)
    wanted = size.groupby([rows["step"], rows["datum_id"]]).sum()
    wanted = wanted / size.groupby(rows["step"]).sum()
    np.testing.assert_allclose(found.datums.sum_E, wanted.to_numpy(), rtol=1e-6)
    assert found.neurons.sum_E.sum() < run.steps_done
    unit = "layers.1.linear2.weight"
    own = rows[(rows["unit"] == unit) & (rows["index"] % 12 == 5)]
    groups = job().groups
    assert groups is not None
    (group,) = [
        g for g in range(groups.num_named) if (groups.units[g], groups.number_G[g]) == (unit, 5)
    ]
    mine = found.neurons.number_E == group
    total = size.groupby(rows["step"]).sum()
    wanted = own["abs_diff"].astype(np.float64).groupby(own["step"]).sum() / total
    np.testing.assert_allclose(found.neurons.sum_E[mine], wanted.dropna().to_numpy(), rtol=1e-6)


def test_law_6_merging_in_any_order_equals_the_whole():
    run = open_run(tiny_run())
    parts = [job().map_shard(shard) for shard in run.shards("outliers")]
    for order in (parts, parts[::-1]):
        found = job().finish(functools.reduce(job().merge, order))
        whole = run_job(job(), run.shards("outliers"))
        for kind in ("datums", "neurons"):
            for column in ("step_E", "number_E", "sum_E"):
                a, b = (getattr(getattr(each, kind), column) for each in (found, whole))
                np.testing.assert_allclose(a, b)


def write_directions(run: Run, share_SK: np.ndarray) -> None:
    """Write tables of ``ontogeny spectrum`` with directions that have these shares of each step."""
    length_K = np.sqrt(share_SK.sum(0))
    rows = [
        {"direction": k, "step": step, "weight": np.sqrt(share_SK[step, k]) / length_K[k]}
        for k in range(share_SK.shape[1])
        for step in range(len(share_SK))
    ]
    frames = {name: schema.empty_table().to_pandas() for name, schema in SPECTRUM.items()}
    values = pd.DataFrame({"direction": range(share_SK.shape[1]), "value": length_K})
    frames |= {"steps": pd.DataFrame(rows)}
    frames |= {"directions": values.reindex(columns=SPECTRUM["directions"].names)}
    write_tables(run, "spectrum", frames, SPECTRUM, Question.of("spectrum"))


def test_a_direction_that_grew_in_the_window_stands_out():
    run = open_run(copied(tiny_run(), "memory://moved-directions").uri)
    share_SK = np.random.default_rng(0).dirichlet([50] * 5, size=run.steps_done)
    share_SK[10:13, 3] += 1
    share_SK /= share_SK.sum(1, keepdims=True)
    write_directions(run, share_SK)
    entries, missing = directions_of(run)
    assert entries is not None
    assert not missing
    np.testing.assert_allclose(entries.sums.sum_E, share_SK.ravel(), atol=1e-12)
    found, notes = find_movers(run, range(10, 13), run_job)
    assert not notes
    own = found[found["kind"] == "direction"].set_index("number")
    assert own["z"].idxmax() == 3
    assert own.loc[3, "inside"] == pytest.approx(share_SK[10:13, 3].mean())
    write_directions(run, share_SK[:9])
    assert directions_of(run)[1] == [
        "Directions are not compared: ontogeny spectrum left steps out."
    ]


def test_the_record_answers_for_a_window():
    run = open_run(tiny_run())
    found, notes = find_movers(run, range(10, 13), run_job)
    assert notes == ["Directions are compared after: ontogeny spectrum."]
    assert set(found["kind"]) == {"datum", "neuron"}
    assert found.loc[found["kind"] == "datum", "text"].str.len().gt(0).all()
    assert found["p"].between(0, 1).all()
