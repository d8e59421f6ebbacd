"""Influence and queries on tasks, whose loss counts at the last positions of a window alone."""

import functools

import numpy as np
import pytest
import torch
from path_steps import path_steps
from tiny_tasks import EVERYTHING, SMALL, tiny_task
from torch.nn import functional as F

from analysis.influence.baselines.gradients import datum_losses, model_and_weights
from analysis.influence.config import InfluenceConfig
from analysis.influence.directions.along import DirectionsConfig, influence_along, unit_vectors
from analysis.influence.drift.along import DriftConfig, measure_drift
from analysis.influence.influence import compute_influence
from analysis.influence.path import batch_derivatives
from analysis.influence.queries.parsing import build_queries
from analysis.influence.suspects.unexpected import UNEXPECTED
from analysis.run.run import Run, open_run
from capture.errors import ConfigError
from capture.training.loop import capture_run

NAMES = sorted(SMALL)


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    @functools.cache
    def make(name: str) -> Run:
        config = tiny_task(tmp_path_factory.mktemp(name), name, *EVERYTHING)
        capture_run(config, lambda event: None)
        return open_run(config.run.uri)

    return make


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_of_a_datum_is_that_of_its_scored_positions(run_of, name):
    run = run_of(name)
    tokens = torch.tensor(run.datum_tokens(3)).long()
    (query,) = build_queries(run, ["datum:train:3"])
    model, weights = model_and_weights(run)
    logit_PV = model.eval()(tokens[None, :-1])[0]
    wanted = F.cross_entropy(logit_PV, tokens[-len(logit_PV) :]).item()
    assert query.value(weights) == pytest.approx(wanted, rel=1e-5)
    found = datum_losses(model, weights, tokens[None, :-1], tokens[None, 1:])
    assert found.tolist() == pytest.approx([wanted], rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_path_influences_and_decay_sum_to_the_change(run_of, name):
    """Law 12."""
    run = run_of(name)
    queries = build_queries(run, ["datum:test:0" if name != "induction" else "datum:train:0"])
    change, entries = 0.0, 0.0
    for step in path_steps(run, queries, range(run.steps_done)):
        parts = np.append(step.influence_QNT.sum(2), step.decay_Q)
        change, entries = change + parts.sum(), entries + np.abs(parts).sum()
    names = run.network().state_dict()
    ends = (run.checkpoint(0), run.checkpoint())
    start, end = (queries[0].value({n: own[n].double() for n in names}) for own in ends)
    assert change == pytest.approx(end - start, abs=1e-3 * entries)


@pytest.mark.parametrize("name", ["maze", "modular-addition"])
def test_the_table_holds_the_sums_over_steps_at_the_scored_positions(run_of, name):
    run = run_of(name)
    queries = build_queries(run, ["datum:test:0"])
    wanted_D = np.zeros(run.num_datums)
    for step in path_steps(run, queries, range(run.steps_done)):
        np.add.at(wanted_D, step.datum_N, step.influence_QNT[0].sum(1))
    found = compute_influence(run, queries, InfluenceConfig(method="path"), resumable=False)
    influence = found.datums.set_index("datum")["influence"]
    np.testing.assert_allclose(influence, wanted_D[influence.index], rtol=1e-9)


@pytest.mark.parametrize("name", ["digits", "modular-addition"])
def test_unrolled_influence_names_every_trained_datum(run_of, name):
    run = run_of(name)
    queries = build_queries(run, ["datum:test:0"])
    found = compute_influence(run, queries, InfluenceConfig(), resumable=False).datums
    trained = set(np.concatenate(run.steps()["datums"].to_list()).tolist())
    assert set(found.loc[found["influence"] != 0, "datum"]) == trained


def test_a_completion_longer_than_what_the_model_predicts_is_refused(run_of):
    run = run_of("modular-addition")
    (query,) = build_queries(run, [{"prompt": "3 2 =", "completion": "5"}])
    token_NT = torch.tensor([[3, 2, 7]])
    log_p = run.network()(token_NT)[0, -1].log_softmax(0)[5].item()
    assert query.value(model_and_weights(run)[1]) == pytest.approx(log_p, rel=1e-5)
    with pytest.raises(ConfigError, match="has 2 tokens, but the run's model predicts the last 1"):
        build_queries(run, [{"prompt": "3 2", "completion": "= 5"}])


# --- a perceptron, whose states have no position --------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_parts_along_a_basis_of_a_perceptron_sum_to_the_influence_through_the_unit(run_of, side):
    run, unit = run_of("digits"), "layers.1.mlp.weight"
    queries = build_queries(run, ["loss"])
    config = DirectionsConfig(unit=unit, side=side, basis="pca", random=19)
    wanted_D = np.zeros(run.num_datums)
    for step, vector_QRC, _ in unit_vectors(run, queries, config):
        own_QNT = batch_derivatives(step, {unit: vector_QRC})
        np.add.at(wanted_D, step.planned.datum_N, own_QNT[0].sum(1))
    found_D = influence_along(run, queries, config).influence_QDK[0].sum(1)
    np.testing.assert_allclose(found_D, wanted_D, atol=1e-5 * np.abs(wanted_D).max())


@pytest.mark.parametrize("basis", ["neurons", "pca", "dictionary"])
@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_a_perceptron_has_directions_and_drift(run_of, basis, side):
    run, unit = run_of("digits"), "layers.1.mlp.weight"
    config = DirectionsConfig(unit=unit, side=side, basis=basis, random=19)
    found = influence_along(run, build_queries(run, ["datum:test:0"]), config)
    assert np.isfinite(found.influence_QDK).all()
    assert found.influence_QDK.any()
    drift = measure_drift(run, DriftConfig(unit=unit, side=side, basis=basis, walks=19)).drift
    assert np.isfinite(drift["drift"]).all()


# --- datums that do not fit -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits", "modular-addition", "maze"])
def test_how_unexpected_a_datum_is_counts_at_scored_positions(run_of, name):
    run = run_of(name)
    scored = run.config.corpus.scored
    target_DP = run.target_NT[:, -scored:]
    evidence = {kind: of(run, lambda done, all: None) for kind, of in UNEXPECTED.items()}
    count_V = np.bincount(target_DP.ravel())
    wanted = -np.log(count_V[target_DP[3]] / target_DP.size).mean()
    assert (evidence["loss"] - evidence["excess"])[3] == pytest.approx(wanted)
    assert evidence["residual"].sum() == pytest.approx(0, abs=1e-4)
    assert np.isfinite(evidence["self-influence"]).all()


# --- tasks whose datums have a fixed layout -------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "prompt", "completion"),
    [("digits", "1 2", "3"), ("modular-addition", "3 2", "5"), ("maze", "wall floor", "r4c0")],
)
def test_a_prompt_that_the_model_never_reads_is_refused(run_of, name, prompt, completion):
    with pytest.raises(
        ConfigError, match=r"completion\.prompt: has 2 tokens, but a datum of .* as "
    ):
        build_queries(run_of(name), [{"prompt": prompt, "completion": completion}])
    with pytest.raises(ConfigError, match=r"text: cannot be asked of a task.* datum:test:0"):
        build_queries(run_of(name), [{"kind": "text", "text": f"{prompt} {completion}"}])


@pytest.mark.parametrize("name", ["digits", "modular-addition", "maze"])
def test_the_layout_of_a_datum_is_answered_as_the_datum(run_of, name):
    run = run_of(name)
    tokens = [run.tokens[token] for token in run.datum_tokens(3)]
    scored = run.config.corpus.scored or 0
    prompt, completion = " ".join(tokens[:-scored]), " ".join(tokens[-scored:])
    asked = {"prompt": prompt, "completion": completion, "measure": "loss"}
    weights = model_and_weights(run)[1]
    one, other = build_queries(run, [asked, "datum:train:3"])
    assert one.value(weights) == pytest.approx(other.value(weights), rel=1e-5)


def test_a_repeated_sequence_may_begin_anywhere(run_of):
    run = run_of("induction")
    first, second = run.tokens[:2]
    assert build_queries(run, [{"prompt": f"{first} {second}", "completion": first}])


def test_a_direction_of_a_perceptron_is_a_mean_over_datums(run_of, tmp_path):
    """A perceptron reads all tokens of a datum at one position."""
    run = run_of("digits")
    model, weights = model_and_weights(run)
    vector_C = np.random.default_rng(0).normal(size=weights["layers.1.mlp.weight"].shape[1])
    np.save(tmp_path / "v.npy", vector_C)
    asked = {"kind": "direction", "module": "layers.1.mlp", "split": "train", "max_datums": 9}
    (query,) = build_queries(run, [asked | {"vector": str(tmp_path / "v.npy")}])
    token_NT = torch.stack([torch.tensor(run.datum_tokens(n)).long() for n in range(9)])
    seen = []
    model.get_submodule("layers.1.mlp").register_forward_pre_hook(
        lambda _, given: seen.append(given[0])
    )
    model(token_NT[:, :-1])
    (hidden_NC,) = seen
    wanted = float((hidden_NC.double() @ torch.from_numpy(vector_C)).mean())
    assert query.value(weights) == pytest.approx(wanted, rel=1e-5)
