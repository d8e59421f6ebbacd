"""Analyses by lifetime shifts: laws on their tables, what is recorded and what is refused."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
from recorded_loops import OPTIMIZERS, recorded
from tiny_run import make_run, tiny_run

from analysis.attribution.attribute import attribute
from analysis.attribution.config import AttributionConfig
from analysis.behaviour.behaviour import BehaviourConfig, analyse_behaviour
from analysis.behaviour.predicates import Predicate
from analysis.lifetime.backward import backward_steps
from analysis.lifetime.run import lifetime_run
from analysis.measures.selection import SelectionConfig
from analysis.neurons.clustering import ClusteringConfig
from analysis.neurons.grouping import NeuronsConfig, group_neurons, read_outlier_sums
from analysis.parameters.config import ParameterConfig
from analysis.parameters.tokens import parameter_tokens
from analysis.run.run import Run, open_run
from capture.errors import RunError
from cluster.local.threads import run_job

UNIT = "layers.1.linear2.weight"
ANY = SelectionConfig(min_count=1, min_observations=0, max_q=1, most=4)
ADAMW = (
    *("training.learning_rate=0.01", "training.optimizer.kind=adamw"),
    *("training.optimizer.weight_decay=0.3", "training.epochs=1", "capture.segment_steps=5"),
)


def tables_of(found) -> dict[str, pd.DataFrame]:
    return {name: table for name, table in vars(found).items() if isinstance(table, pd.DataFrame)}


# --- plain SGD: lifetime shifts are shifts of one step --------------------------------------------


@pytest.fixture(scope="module")
def plain() -> Run:
    return open_run(tiny_run(), tables="memory://lifetime-analyses-plain")


def attributed(run: Run, lifetime: bool, **settings):
    return attribute(run, run_job, AttributionConfig(lifetime=lifetime, selection=ANY, **settings))


QUESTIONS = {
    "neuron": partial(attributed),
    "neuron-shift": partial(attributed, weight="shift", outliers="neuron", windows=3),
    "row": partial(attributed, level="row", evidence="input", weight="effect"),
    "head": partial(attributed, level="head", evidence="window", background="train"),
    "unit": partial(attributed, level="unit", first_step=3, end_step=20),
    "study": lambda run, lifetime: attribute(
        run, run_job, AttributionConfig.study(lifetime=lifetime, selection=ANY, max_parameters=50)
    ),
    "parameter": lambda run, lifetime: parameter_tokens(
        run, ParameterConfig(unit=UNIT, index=most_moved(run, UNIT), lifetime=lifetime)
    ),
    "behaviour": lambda run, lifetime: analyse_behaviour(
        run, run_job, Predicate(target="w3"), BehaviourConfig(resamples=9, lifetime=lifetime)
    ),
    "neurons": lambda run, lifetime: group_neurons(
        run,
        read_outlier_sums(run, run_job, lifetime=lifetime),
        NeuronsConfig(
            clustering=ClusteringConfig(min_cluster=3, components=4),
            **{"weight": "shift", "min_rows": 1, "bootstraps": 2, "lifetime": lifetime},
        ),
    ),
}


def most_moved(run: Run, unit: str) -> int:
    return int(run.shifts(unit=unit)["index"].mode()[0])


@pytest.mark.parametrize("ask", QUESTIONS.values(), ids=QUESTIONS)
def test_under_plain_sgd_every_table_is_that_of_one_step(plain, ask):
    one_step, lifetime = (tables_of(ask(plain, lifetime=by)) for by in (False, True))
    lifetime.pop("contributions", None)  # lifetime shifts alone have them
    one_step.pop("contributions", None)
    assert len(one_step) > 1
    for name, table in one_step.items():
        pd.testing.assert_frame_equal(table, lifetime[name], obj=name)


@pytest.mark.parametrize("evidence", ["update-norm", "geometric-mean", "input-update-norm"])
def test_under_plain_sgd_update_norms_are_those_of_tallies(plain, evidence):
    one_step, lifetime = (attributed(plain, by, evidence=evidence) for by in (False, True))
    keys = ["unit", "group"]
    weights = one_step.groups.merge(lifetime.groups, on=keys, validate="1:1")
    assert len(weights) == len(one_step.groups) > 20
    np.testing.assert_allclose(weights["weight_x"], weights["weight_y"], rtol=2**-6)


# --- AdamW, with every shift in the record --------------------------------------------------------


@pytest.fixture(scope="module")
def whole() -> Run:
    units = f"capture.units=[{UNIT},layers.0.linear1.weight]"
    options = (*ADAMW, units, "capture.outliers.k=192", "capture.outliers.scope=unit")
    return open_run(make_run("memory://lifetime-analyses-whole", *options))


def test_shifts_of_a_parameter_and_decay_are_its_change(whole):
    """All shifts are outliers here, so the table's sum is over all datums and steps."""
    change = (whole.checkpoint()[UNIT] - whole.checkpoint(0)[UNIT]).numpy().ravel()
    decay = whole.initial_decay(UNIT).ravel()
    for index in (0, 7, 100):
        config = ParameterConfig(unit=UNIT, index=index, lifetime=True)
        about = parameter_tokens(whole, config).about
        assert about["rows"].item() == 12 * 4
        size = np.abs(change).max()
        np.testing.assert_allclose(about["shift"] + decay[index], change[index], atol=1e-5 * size)
        one_step = parameter_tokens(whole, ParameterConfig(unit=UNIT, index=index)).about
        assert abs(one_step["shift"].item() - change[index]) > 0.1 * abs(change[index])


def test_weights_of_neurons_are_sums_over_dense_lifetime_shifts(whole):
    found = attributed(whole, True, weight="shift", evidence="window")
    wanted = np.zeros(12)
    for step in whole.lifetime_shifts(UNIT):
        wanted += np.abs(step.shift_N).sum((0, 1), dtype=np.float64)
    own = found.groups[found.groups["unit"] == UNIT].set_index("group")["weight"]
    window = whole.token_NT.shape[1]
    np.testing.assert_allclose(own.sort_index(), wanted * window, rtol=1e-5)


def test_momentum_multiplies_the_rows_of_a_step_by_one_number():
    options = ("training.optimizer.momentum=0.9", "training.epochs=1")
    run = open_run(make_run("memory://lifetime-analyses-momentum", *options))
    one_step, lifetime = run.shifts(), lifetime_run(run).shifts()
    keys = ["step", "datum_ix", "unit", "index", "position"]
    assert one_step[keys].equals(lifetime[keys])
    ratio = (lifetime["diff"] / one_step["diff"]).groupby(one_step["step"])
    np.testing.assert_allclose(ratio.min(), ratio.max(), rtol=1e-5)
    assert ratio.mean().iloc[0] > 5
    assert ratio.mean().iloc[-1] == pytest.approx(1)


# --- refusals -------------------------------------------------------------------------------------


def test_positions_that_a_custom_loop_did_not_store_are_not_made_up(tmp_path):
    run = recorded(tmp_path, OPTIMIZERS["adamw"])
    with pytest.raises(RunError, match="lifetime shifts without positions"):
        attributed(run, True, level="unit")
    assert len(attributed(run, True, level="unit", evidence="window").groups)
    assert len(attributed(run, True, level="row").groups)
    config = BehaviourConfig(resamples=9, controls=2, lifetime=True)
    target = run.tokens[run.target_NT[0, 0]]
    with pytest.raises(RunError, match="lifetime shifts without positions"):
        analyse_behaviour(run, run_job, Predicate(target=target), config)
    weight, bias = "layer.weight", "norm.weight"
    asked = ParameterConfig(unit=weight, index=0, evidence="target", lifetime=True)
    assert len(parameter_tokens(run, asked).tokens)
    with pytest.raises(RunError, match="lifetime shifts without positions"):
        parameter_tokens(run, ParameterConfig(unit=bias, index=0, evidence="input", lifetime=True))


def test_a_custom_loop_without_factors_is_refused(tmp_path):
    run = recorded(tmp_path, OPTIMIZERS["sgd"], factors=False)
    with pytest.raises(RunError, match=r"Record factors while it trains"):
        attributed(run, True)


# --- contributions --------------------------------------------------------------------------------


@pytest.mark.parametrize("evidence", ["target", "input", "geometric-mean"])
def test_shares_of_tokens_and_decay_sum_to_the_change_of_each_neuron(whole, evidence):
    found = attributed(whole, True, evidence=evidence).contributions
    change = (whole.checkpoint()[UNIT] - whole.checkpoint(0)[UNIT]).double().norm(dim=0)
    own = found[found["unit"] == UNIT].groupby("group")
    assert own.ngroups == 12
    np.testing.assert_allclose(own["contribution"].sum(), change, rtol=1e-4)
    np.testing.assert_allclose(own["share"].sum(), 1, rtol=1e-4)
    for _, rows in own:
        listed = rows[rows["token_id"] >= 0]
        assert (rows["token_id"].to_numpy()[-2:] == [-1, -2]).all()
        assert (np.diff(listed["contribution"].abs()) <= 0).all()
        assert listed["token"].tolist() == [whole.tokens[i] for i in listed["token_id"]]
        assert len(listed) == ANY.most


def test_contributions_of_a_token_are_those_of_its_positions(whole):
    """A token that stands at one position of the corpus contributes what that position does."""
    largest = attributed(whole, True).contributions
    row = largest[(largest["unit"] == UNIT) & (largest["group"] == 3)].iloc[0]
    change = (whole.checkpoint()[UNIT] - whole.checkpoint(0)[UNIT]).double().numpy()
    along_O = change[:, 3] / np.linalg.norm(change[:, 3])
    total = 0.0
    for step in backward_steps(whole):
        (use,) = step.factors[UNIT]
        assert use.a_NTI is not None
        by_O = np.asarray(step.coefficients[UNIT])[:, 3] * along_O
        part_NT = (use.delta_NTO.double().numpy() @ by_O) * use.a_NTI[..., 3].double().numpy()
        total += part_NT[whole.target_NT[step.datum_N] == row["token_id"]].sum()
    assert row["contribution"] == pytest.approx(total, rel=1e-4)


def test_contributions_are_of_neurons_and_of_all_steps(whole):
    assert not len(attributed(whole, False).contributions)
    assert not len(attributed(whole, True, end_step=8).contributions)
    assert not len(attributed(whole, True, level="row").contributions)
