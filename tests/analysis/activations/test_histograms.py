"""Histograms of activations equal NumPy's."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import copied, tiny_run

from analysis.activations.histograms import (
    HISTOGRAMS,
    NUM_BINS,
    activations_at,
    bin_bounds,
    bins_of,
    neuron_histograms,
)
from analysis.activations.quantities import measure, units_of
from analysis.run.run import open_run
from capture.errors import RunError, UnitError
from capture.format.markers import START
from capture.models.transformer import ModelConfig, fresh_model
from capture.store import Store

TINY = ModelConfig(layers=2, width=12, hidden=10, heads=3)
VOCABULARY, WINDOW, DATUMS = 17, 6, 30
MODEL = fresh_model(TINY, vocabulary=VOCABULARY, window=WINDOW, seed=0).eval()
RNG = np.random.default_rng(0)
TOKEN_NT = RNG.integers(VOCABULARY - 2, size=(DATUMS, WINDOW)).astype(np.int32)


def test_activations_at_positions_come_in_the_given_order() -> None:
    index_M = np.array([100, 3, 3, 179, 0])
    unit, columns = "layers.1.linear2.weight", [7, 2]
    x_MI = measure(MODEL, TOKEN_NT, [unit])[unit].reshape(-1, 10)
    found_MC = activations_at(MODEL, TOKEN_NT, index_M, unit, columns)
    np.testing.assert_allclose(found_MC, x_MI[index_M][:, columns], atol=1e-5)


@given(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=30))
def test_every_value_is_in_its_bin(values: list[float]) -> None:
    x_M = np.array(values, np.float32)
    bound_B = bin_bounds(float(x_M.min()), float(x_M.max()))
    bin_M = bins_of(x_M, bound_B)
    assert len(bound_B) == NUM_BINS + 1
    assert (bound_B[bin_M] <= x_M).all()
    last = bin_M == NUM_BINS - 1
    assert ((x_M < bound_B[bin_M + 1]) | last).all()
    assert (x_M <= bound_B[-1]).all()


def expected_histograms(attributed: dict[tuple[str, int], list[int]]) -> pd.DataFrame:
    """Build the histograms over all datums with ``numpy.histogram``."""
    run, frames = open_run(tiny_run()), []
    inputs = measure(run.model(), run.token_NT, list(units_of(run.model())))
    for (unit, neuron), tokens in attributed.items():
        x_NT = inputs[unit][:, :, neuron].astype(np.float64)
        own_NT = np.isin(run.target_NT, tokens)
        for group, mask_NT in (("attributed", own_NT), ("other", ~own_NT)):
            span = float(x_NT.min()), float(x_NT.max())
            count_B, bound_B = np.histogram(x_NT[mask_NT], NUM_BINS, range=span)
            share_B = count_B / max(count_B.sum(), 1)
            values = {"low": bound_B[:-1], "high": bound_B[1:], "count": count_B, "share": share_B}
            names = {"figure": 0, "unit": unit, "neuron": neuron, "group": group}
            frames.append(pd.DataFrame(names | values))
    return pd.concat(frames, ignore_index=True)


def test_histograms_of_many_neurons_equal_numpys() -> None:
    run = open_run(tiny_run())
    units = {unit: size for unit, size in units_of(run.model()).items() if "linear1" in unit}
    attributed = {
        (unit, n): [n % 5, 3, 4] for unit, size in units.items() for n in range(0, size, 3)
    }
    found = neuron_histograms(run, attributed)
    wanted = expected_histograms(attributed)
    names = ["figure", "unit", "neuron", "group"]
    assert list(found.columns) == HISTOGRAMS.names
    pd.testing.assert_frame_equal(found[names], wanted[names], check_dtype=False)
    np.testing.assert_allclose(found["low"], wanted["low"], atol=1e-5)
    # A forward pass of other datums together may move a value across a bound in the last bit.
    assert (found["count"] - wanted["count"]).abs().sum() <= 4
    totals = found.groupby(["unit", "neuron"])["count"].sum()
    assert (totals == run.target_NT.size).all()
    assert found.groupby(["unit", "neuron", "group"])["share"].sum().round(9).eq(1).all()


def test_a_group_without_positions_has_shares_of_zero() -> None:
    run = open_run(tiny_run())
    found = neuron_histograms(run, {("layers.1.linear2.weight", 3): []})
    own = found[found["group"] == "attributed"]
    assert (own["count"] == 0).all()
    assert (own["share"] == 0).all()
    assert neuron_histograms(run, {}).empty


def test_a_sample_has_max_datums_and_the_same_seed_draws_it_again() -> None:
    run, neuron = open_run(tiny_run()), {("layers.0.linear1.weight", 0): [5]}
    a, b, other = (
        neuron_histograms(run, neuron, "input", max_datums=6, seed=seed) for seed in (1, 1, 2)
    )
    assert a["count"].sum() == 6 * 8
    pd.testing.assert_frame_equal(a, b)
    assert not a.equals(other)


def test_histograms_of_unknown_neurons_are_refused() -> None:
    with pytest.raises(UnitError, match=r"layers\.0\.linear1\.weight neuron 16: does not exist"):
        neuron_histograms(open_run(tiny_run()), {("layers.0.linear1.weight", 16): [1]})
    store = copied(tiny_run(), "memory://activations-uncommitted")
    uncommit(store)
    with pytest.raises(RunError, match="holds no committed segment yet"):
        neuron_histograms(open_run(store.uri), {})


def uncommit(store: Store) -> None:
    for key in store.keys("segments"):
        if key != START:
            store.delete(key)
