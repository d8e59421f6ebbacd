"""Evaluation of attribution: the ground truth, and methods of known quality."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.stats import sem
from tiny_run import copied, make_run, tiny_run

from analysis.ablation.log_probability import TokenChanges, log_probability_changes
from analysis.faithfulness.faithfulness import (
    SCORES,
    SPLIT_HALF,
    Faithfulness,
    affected_tokens,
    best_of,
    evaluate,
    faithfulness,
    split_half,
    summaries,
)
from analysis.faithfulness.ground_truth import (
    SIGMAS,
    AblationEffects,
    FaithfulnessConfig,
    draw_neurons,
    evaluation_text,
    measure_effects,
    ranked_tokens,
)
from analysis.faithfulness.methods import ScoringMethod, group_indices, scoring_methods
from analysis.jobs.tables import read_table
from analysis.levels import groups_at
from analysis.run.ablatable import obstacle_to_confirmation
from analysis.run.run import open_run
from capture.custom_loop.record import record
from capture.errors import ConfigError, RunError
from cluster.cli import main
from cluster.local.threads import run_job
from cluster.terminal.faithfulness_tables import too_small

CONFIG = FaithfulnessConfig(neurons=3, min_count=1, max_datums=40, resamples=50, text="train")


# --- the ground truth -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run():
    return open_run(tiny_run())


@pytest.fixture(scope="module")
def effects(run) -> AblationEffects:
    return measure_effects(run, draw_neurons(run, CONFIG), CONFIG, None)


ONE = replace(CONFIG, neurons=1)
"""One neuron of each unit, for tests that evaluate every method."""


@pytest.fixture(scope="module")
def counted(run) -> tuple[Faithfulness, list[object]]:
    """Return the tables of ``ONE``, and an entry for each computation of effect sizes."""
    calls: list[object] = []
    sizes = AblationEffects.effect_sizes
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            AblationEffects, "effect_sizes", lambda *given: calls.append(given) or sizes(*given)
        )
        return faithfulness(run, run_job, ONE), calls


def test_neurons_are_drawn_from_every_unit_and_the_same_each_time(run):
    drawn = draw_neurons(run, CONFIG)
    assert drawn == draw_neurons(run, CONFIG) != draw_neurons(run, replace(CONFIG, seed=1))
    assert [s.unit for s in drawn] == [
        f"layers.{layer}.linear{part}.weight" for layer in (0, 1) for part in (1, 2) for _ in "abc"
    ]
    assert len(draw_neurons(run, replace(CONFIG, neurons=999))) == 2 * (16 + 12)


def test_both_halves_together_are_the_whole_text(run, effects):
    text = evaluation_text(run, CONFIG)
    subjects = draw_neurons(run, CONFIG)
    whole = log_probability_changes(run.model(), *text, subjects, num_tokens=run.num_tokens)
    for found, wanted in zip(effects.whole, whole, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


@given(
    changes=arrays.arrays(np.float64, (2, 9), elements=st.floats(-2, 2)),
    token_M=arrays.arrays(np.int64, 9, elements=st.integers(0, 3)),
)
def test_effect_sizes_are_lower_bounds_of_mean_changes(changes, token_M):
    """Compare with each token's own positions and SciPy's standard error."""
    sums = [
        np.stack([np.bincount(token_M, row, 4) for row in rows]) for rows in (changes, changes**2)
    ]
    found = TokenChanges(sums[0], sums[1], np.bincount(token_M, minlength=4))
    size_SW = AblationEffects(found, found, np.arange(4)).effect_sizes(found)
    for s, row in enumerate(changes):
        for token in range(4):
            own = row[token_M == token]
            wanted = abs(own.mean()) - SIGMAS * sem(own) if len(own) > 1 else 0
            assert size_SW[s, token] == pytest.approx(max(0, wanted), abs=1e-6)


def test_held_out_text_is_what_the_run_held_out(run):
    token_NT, _ = evaluation_text(run, replace(CONFIG, text="held-out"))
    assert sorted(map(tuple, token_NT)) == sorted(
        map(tuple, np.stack(run.datums("validation")["tokens"].tolist()))
    )


# --- evaluation -----------------------------------------------------------------------------------


def known(run, effects: AblationEffects) -> np.ndarray:
    """Return the ground truth as scores of every token, [S, V]."""
    score_SV = np.zeros(effects.whole.change_SV.shape)
    score_SV[:, effects.token_W] = effects.effect_sizes(effects.whole)
    return score_SV


def test_the_ground_truth_as_a_method_is_perfect_and_its_opposite_is_not(run, effects):
    subjects, size_SV = draw_neurons(run, CONFIG), known(run, effects)
    affected_SW = affected_tokens(effects, effects.whole, CONFIG)
    perfect, opposite = (
        evaluate(
            ScoringMethod(name, "", "", score_SV), effects.token_W, affected_SW, subjects, CONFIG
        )
        for name, score_SV in (("truth", size_SV), ("opposite", -size_SV))
    )
    assert perfect["auc"].dropna().min() == 1
    assert opposite["auc"].dropna().max() < 0.5


def test_effect_sizes_are_computed_once_for_all_methods(counted):
    """The whole text takes one computation, and either half two, for any number of methods."""
    found, calls = counted
    assert len(found.selections) > 4 * len(calls)
    assert len(calls) == 5


def test_half_of_the_text_is_evaluated_against_the_other(run, effects):
    """The reliability is perfect if both halves are the same text, and not otherwise."""
    subjects = draw_neurons(run, CONFIG)
    same = replace(effects, second=effects.first)
    assert split_half(same, subjects, CONFIG)["auc"].dropna().min() == 1
    assert split_half(effects, subjects, CONFIG)["auc"].dropna().min() < 1


def test_every_method_scores_every_token(run):
    subjects = draw_neurons(run, ONE)
    found = list(scoring_methods(run, run_job, subjects, ONE))
    assert all(method.score_SV.shape == (len(subjects), run.num_tokens) for method in found)
    assert not any(np.isnan(method.score_SV).any() for method in found)
    names = {method.evidence for method in found}
    assert {
        "window tokens",
        "target tokens",
        "update norm",
        "ablation estimate, last window",
        "random",
    } <= names
    labels = [(method.evidence, method.background, method.select) for method in found]
    assert len(set(labels)) == len(labels)


def test_group_indices_lead_to_the_neurons(run):
    groups = groups_at("neuron", run.layout, heads=1)
    subjects = draw_neurons(run, CONFIG)
    for subject, index in zip(subjects, group_indices(groups, subjects), strict=True):
        assert (groups.units[index], groups.number_G[index]) == (subject.unit, subject.group)


def test_scores_keep_the_best_selection_of_each_evidence(run, effects):
    subjects = draw_neurons(run, CONFIG)
    good = known(run, effects)
    bad = np.zeros_like(good)
    affected_SW = affected_tokens(effects, effects.whole, CONFIG)
    evaluated = [
        evaluate(
            ScoringMethod("x", "unit", select, score),
            effects.token_W,
            affected_SW,
            subjects,
            CONFIG,
        )
        for select, score in (("odds", bad), ("kl", good))
    ]
    table = pd.DataFrame(summaries(pd.concat(evaluated, ignore_index=True), CONFIG))
    assert len(table) == 2 * 4
    assert set(best_of(table)["select"]) == {"kl"}


def test_the_command_writes_tables_that_read_back(capsys):
    uri = "memory://faithful"
    copied(tiny_run(), uri)
    arguments = ["--text", "train", "--neurons", "1", "--min-count", "1", "--datums", "30"]
    assert main(["faithfulness", uri, *arguments]) == 0
    out = capsys.readouterr().out
    assert "How well each method ranks the tokens that ablation affects" in out
    assert SPLIT_HALF in out
    table = read_table(open_run(uri), "faithfulness", "scores", SCORES)
    assert table["auc"].between(0, 1).all()
    assert (table["auc_low"] <= table["auc"]).all()
    assert (table["neurons"] == 1).all()


def test_the_same_seed_gives_the_same_tables(run, counted):
    one, two = counted[0], faithfulness(run, run_job, ONE)
    for name in ("scores", "selections", "neurons"):
        assert vars(one)[name].equals(vars(two)[name])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"neurons": 0}, r"faithfulness\.neurons: got 0, must be at least 1"),
        ({"affected": 0.7}, r"faithfulness\.affected: got 0.7, must be above 0 and at most 0.5"),
        ({"text": "none"}, r"faithfulness\.text: got none, must be held-out or train"),
    ],
)
def test_settings_are_checked(changes, message):
    with pytest.raises(ConfigError, match=message):
        replace(CONFIG, **changes)


def test_too_little_text_is_refused_and_nothing_is_written():
    uri = "memory://faithful-little"
    store = copied(tiny_run(), uri)
    wanted = "has too little text: 0 tokens are each the target of at least 9999 positions, and 10 "
    wanted += r"are needed\. Lower --min-count, or raise --datums"
    with pytest.raises(RunError, match=wanted):
        faithfulness(open_run(uri), run_job, replace(CONFIG, min_count=9999))
    assert not store.keys("analysis")


@pytest.mark.parametrize("min_count", [1, 10])
def test_a_text_with_few_kinds_of_tokens_is_not_told_to_lower_the_count(min_count: int):
    """Nine kinds of tokens are too few to rank, however often each comes next."""
    with pytest.raises(RunError) as caught:
        ranked_tokens(np.full(9, 50), replace(CONFIG, min_count=min_count), "uri")
    text = str(caught.value)
    assert "has too few kinds of tokens to rank: 9 are a target in the text, and 10 are" in text
    assert "--min-count" not in text
    assert ranked_tokens(np.full(10, 50), CONFIG, "uri").tolist() == list(range(10))


def test_a_run_without_held_out_text_names_the_remedy():
    uri = make_run("memory://all-train", "corpus.validation_share=0", "training.epochs=1")
    with pytest.raises(RunError, match=r"holds no held-out text.*--text train"):
        faithfulness(open_run(uri), run_job, FaithfulnessConfig())


def test_a_run_of_a_custom_loop_is_offered_its_training_text_alone():
    datums = torch.tensor([[1, 2, 3], [3, 1, 2]])
    model = torch.nn.Sequential(torch.nn.Embedding(4, 4), torch.nn.Linear(4, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    uri = "memory://faithful-own"
    with record(model, optimizer, run=uri, datums=datums, vocabulary=list("abcd")) as seen:
        seen.datums([0, 1])
        logits = model(datums[:, :-1])
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), datums[:, 1:].flatten()).backward()
        optimizer.step()
    run = open_run(uri, model=model)
    with pytest.raises(RunError, match=r"no held-out text.*--text train") as caught:
        evaluation_text(run, FaithfulnessConfig())
    assert "corpus.validation_share" not in str(caught.value)
    obstacle = obstacle_to_confirmation(run)
    assert obstacle
    assert "holds no held-out text to confirm tokens on" in str(obstacle)
    assert "corpus.validation_share" not in str(obstacle)
    assert "ablate and faithfulness --text train" in str(obstacle)


@pytest.mark.parametrize(("auc", "warned"), [(0.58, True), (0.51, False), (0.4, True)])
def test_a_text_on_which_random_evidence_wins_is_called_too_small(auc: float, warned: bool) -> None:
    scores = pd.DataFrame({"evidence": ["random", "window tokens"], "auc": [auc, 0.7]})
    assert ("too small to judge" in too_small(scores)) == warned
