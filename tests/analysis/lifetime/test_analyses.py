"""Analyses by lifetime shifts: laws on their tables, what is recorded and what is refused."""

import functools
import json
from functools import partial

import numpy as np
import pandas as pd
import pytest
from recorded_loops import OPTIMIZERS, recorded
from tiny_run import copied, make_run, tiny_run

import ontogeny
from analysis.attribution.attribute import attribute
from analysis.attribution.config import AttributionConfig
from analysis.behaviour.behaviour import BehaviourConfig, analyse_behaviour
from analysis.behaviour.predicates import Predicate
from analysis.jobs.tables import read_question, table_set
from analysis.lifetime.backward import backward_steps
from analysis.lifetime.run import lifetime_run
from analysis.measures.selection import SelectionConfig
from analysis.neurons.clustering import ClusteringConfig
from analysis.neurons.grouping import NeuronsConfig, group_neurons, read_outlier_sums
from analysis.parameters.config import ParameterConfig
from analysis.parameters.tokens import parameter_tokens
from analysis.run.run import Run, open_run
from capture.errors import ConfigError, RunError
from capture.store import Store
from cluster.cli import main
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


# --- commands and the Python API ------------------------------------------------------------------


@functools.cache
def made_under_adamw() -> str:
    """Return the URI of a run that has its record of lifetime shifts."""
    uri = make_run("memory://lifetime-analyses-adamw", *ADAMW)
    lifetime_run(open_run(uri))
    return uri


@pytest.fixture
def adamw(tmp_path) -> str:
    copied(made_under_adamw(), f"file://{tmp_path}/run")
    return f"{tmp_path}/run"


def test_tables_say_which_kind_of_shift_they_count(adamw, capsys):
    assert main(["attribute", adamw, "--max-q", "1"]) == 0
    assert "lifetime" not in capsys.readouterr().out
    before = Store(adamw).get("analysis/attribute/tokens.parquet")
    assert main(["attribute", adamw, "--max-q", "1", "--lifetime"]) == 2
    said = capsys.readouterr().err
    assert "holds the tables of another question (lifetime=false, now" in said
    assert "--name lifetime. Or" in said
    assert Store(adamw).get("analysis/attribute/tokens.parquet") == before
    Store(adamw).delete("analysis/lifetime/tables.json")
    options = ["--max-q", "1", "--lifetime", "--name", "whole-life"]
    assert main(["attribute", adamw, *options]) == 0
    assert "Lifetime shifts are counted" in capsys.readouterr().out
    run = open_run(adamw)
    asked = [read_question(run, table_set("attribute", n)).options for n in ("", "whole-life")]
    assert [options["lifetime"] for options in asked] == [False, True]
    assert read_question(run, "lifetime").options["k"] == 50
    assert main(["verify", adamw, "--quiet"]) == 0


def test_tables_of_an_earlier_version_are_of_one_step(adamw, capsys):
    assert main(["attribute", adamw, "--quiet"]) == 0
    run = open_run(adamw)
    question = read_question(run, "attribute")
    del question.options["lifetime"]
    from analysis.jobs.claims import difference, extends
    from analysis.jobs.question import Question

    config = AttributionConfig.recommended(tallies=True)
    now, lifetime = (
        Question.of("attribute", c)
        for c in (config, AttributionConfig.recommended(tallies=True, lifetime=True))
    )
    assert extends(now, question)
    assert not extends(lifetime, question)
    assert difference(lifetime, question).startswith("lifetime=null, now")


@pytest.mark.parametrize(
    "command",
    [
        ["behaviour", "--contains", "w3"],
        ["neurons", "--min-rows", "1", "--min-cluster", "3", "--bootstraps", "2"],
        ["attribute", "--level", "parameter", "--parameters", "20", "--min-count", "1"],
        ["attribute", "--study", "--min-count", "1", "--confirm", "--confirm-datums", "4"],
    ],
)
def test_commands_count_lifetime_shifts(adamw, command, capsys):
    name, *options = command
    assert main([name, adamw, *options, "--lifetime", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)
    assert read_question(open_run(adamw), name).options["lifetime"] is True


def test_the_python_api_offers_them(adamw):
    run = ontogeny.open_run(adamw)
    found = run.attribute(lifetime=True)
    config = AttributionConfig.recommended(tallies=True, lifetime=True)
    assert found.tokens.equals(ontogeny.attribute(run, config).tokens)
    assert not found.groups["weight"].equals(run.attribute().groups["weight"])


# --- refusals -------------------------------------------------------------------------------------


def test_the_ablation_estimate_has_no_lifetime(adamw, capsys):
    options = ["--evidence", "ablation-estimate", "--lifetime"]
    assert main(["attribute", adamw, *options]) == 2
    assert "got ablation-estimate, which has no shifts" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="which has no shifts, for lifetime shifts"):
        AttributionConfig(evidence="input-ablation-estimate", lifetime=True)


def test_commands_without_it_refuse_the_option(adamw, capsys):
    for command in ("bigrams", "ablate", "faithfulness"):
        assert main([command, adamw, "--lifetime"]) == 2
        assert "--lifetime" in capsys.readouterr().err


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


def test_the_report_says_which_kind_of_shift_it_shows(adamw):
    few = ["--neurons", "2"]
    for options, words in (([], "Shifts of one step are counted"), (["--lifetime"], "Lifetime sh")):
        evidence = ["--evidence", "target", "--select", "study", "--min-count", "1"]
        assert main(["attribute", adamw, *evidence, *options, "--replace", "--quiet"]) == 0
        assert main(["report", adamw, *few, "--quiet"]) == 0
        keys = Store(adamw).keys("report")
        pages = sorted(key for key in keys if key.startswith("report/neuron") and "html" in key)
        assert len(pages) == 3
        texts = [Store(adamw).get(key).decode() for key in pages]
        with_tokens = [text for text in texts if "what the neuron would be" in text]
        assert with_tokens
        assert all(words in text for text in [texts[-1], *with_tokens])
    assert sum("largest lifetime shift" in text for text in texts) == 2
    assert "lifetime" in Store(adamw).get("report/index.html").decode()


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
