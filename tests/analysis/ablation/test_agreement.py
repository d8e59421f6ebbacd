"""Agreement of ablation with attribution is measured on log-probabilities, beside its chance."""

import io

import numpy as np
import pandas as pd
import pytest
from ablated import CONFIG, ablated, evaluated, prepared, subject_of
from reference_ablation import log_probabilities, logits, records, without
from rich.console import Console

from analysis.ablation.config import AblationConfig
from analysis.ablation.subjects import Subject
from analysis.ablation.target_changes import TargetChanges
from analysis.measures.agreement import Agreement, nearly_dead
from analysis.measures.bootstrap import draw_counts
from cluster.terminal.ablation_tables import show_ablation

SUBJECT = Subject("layers.0.linear2.weight", 0)


def shown(found, rows: int = 50) -> str:
    text = io.StringIO()
    show_ablation(Console(file=text, width=300), found, rows=rows)
    return text.getvalue()


def test_changes_of_notable_and_other_targets_equal_naive_forward_passes() -> None:
    run, found = ablated()
    for neuron in records(found.neurons):
        subject = subject_of(neuron)
        datums = evaluated(subject)[: CONFIG.scored_datums]
        token_NT, target_NT = run.token_NT[datums], run.target_NT[datums]
        change_NT = log_probabilities(
            logits(without(run.model(), subject), token_NT), target_NT
        ) - log_probabilities(logits(run.model(), token_NT), target_NT)
        notable_NT = np.isin(target_NT, prepared()[1][subject][0])
        assert neuron.rms_change == pytest.approx(np.sqrt((change_NT**2).mean()), abs=1e-5)
        assert neuron.notable_positions == notable_NT.sum()
        if not notable_NT.any():
            assert np.isnan([neuron.notable_change, neuron.difference]).all()
            continue
        sides = change_NT[notable_NT].mean(), change_NT[~notable_NT].mean()
        assert (neuron.notable_change, neuron.other_change) == pytest.approx(sides, abs=1e-5)
        assert neuron.difference == pytest.approx(sides[0] - sides[1], abs=1e-5)
        assert neuron.notable_change_low <= neuron.notable_change + 1e-6


def test_the_interval_of_the_difference_equals_a_loop_over_draws_of_datums() -> None:
    rng = np.random.default_rng(0)
    target_KT, change_KT = rng.integers(6, size=(9, 8)), rng.normal(size=(9, 8))
    row_M, position_M = (index.ravel() for index in np.indices((9, 8)))
    found = TargetChanges(SUBJECT, "zero", target_KT, row_M, position_M, change_KT.ravel())
    notable_KT = np.isin(target_KT, [1, 2])
    draws = []
    for draw_K in draw_counts(9):
        one, other = (
            (draw_K @ (change_KT * side_KT).sum(1)) / (draw_K @ side_KT.sum(1))
            for side_KT in (notable_KT, ~notable_KT)
        )
        draws.append(one - other)
    wanted = np.quantile(draws, [0.025, 0.975], method="nearest")
    contrast = found.contrast(np.array([1, 2]))
    ends = [contrast["difference_low"], contrast["difference_high"]]
    np.testing.assert_allclose(ends, wanted, rtol=1e-4)


def random_evidence(count: int, effect: float = 0.0) -> pd.DataFrame:
    """Return figures of neurons whose notable tokens are drawn at random and change by effect."""
    rng = np.random.default_rng(1)
    rows = []
    for number in range(count):
        target_KT = rng.integers(40, size=(60, 20))
        notable = rng.permutation(40)[:5]
        change_KT = rng.normal(0, 0.05, size=target_KT.shape)
        change_KT = change_KT + effect * np.isin(target_KT, notable)
        row_M, position_M = (index.ravel() for index in np.indices(target_KT.shape))
        found = TargetChanges(SUBJECT, "zero", target_KT, row_M, position_M, change_KT.ravel())
        rows.append({"unit": SUBJECT.unit, "neuron": number} | found.contrast(notable))
    return pd.DataFrame(rows)


def test_random_evidence_agrees_as_often_as_chance() -> None:
    found = Agreement.of(random_evidence(100))
    assert found.evaluated == 100
    assert 35 <= found.lower <= 65
    assert found.clear_below + found.clear_above <= 12
    assert found.low < 0 < found.high
    first, second, *_ = found.sentences("neurons")
    assert "95 % CI" in first
    assert "n = " in first
    assert "by chance half" in second
    assert "by chance 2.5 %" in second


def test_planted_evidence_agrees() -> None:
    found = Agreement.of(random_evidence(30, effect=-0.1))
    assert (found.lower, found.clear_below) == (30, 30)
    assert found.high < 0
    assert found.difference == pytest.approx(-0.1, abs=0.01)


def test_too_few_positions_are_not_evaluated_and_reported() -> None:
    few = random_evidence(3).assign(notable_positions=[4, 0, 9])
    found = Agreement.of(few)
    assert (found.evaluated, found.too_few) == (0, 3)
    (line,) = found.sentences("neurons")
    assert "too few to evaluate" in line


def test_nothing_is_evaluated_without_scores() -> None:
    _, found = ablated(AblationConfig(max_neurons=2, max_datums=5, scored_datums=0))
    assert "--scored-datums" in shown(found)


def test_a_nearly_dead_neuron_says_so() -> None:
    neurons = random_evidence(3).assign(rms_change=[0.2, 0.0001, np.nan])
    assert nearly_dead(neurons).tolist() == [False, True, False]
    assert "1 of 2 neurons is nearly dead" in " ".join(Agreement.of(neurons).sentences("neurons"))


def test_the_command_lists_the_largest_effect_first_and_says_what_chance_is() -> None:
    _, found = ablated()
    text = shown(found)
    ordered = found.neurons.sort_values("rms_change", ascending=False, kind="stable")
    lines = [line.split()[:2] for line in text.splitlines() if line.strip().startswith("layers.")]
    wanted = [[row.unit, str(row.neuron)] for row in records(ordered)]
    assert lines[: len(wanted)] == wanted
    assert "strongest" not in text
    assert "flip their notable" not in text


def test_shares_of_flips_have_intervals_of_some_width() -> None:
    _, found = ablated()
    for name in ("notable", "other"):
        width = found.neurons[f"{name}_high"] - found.neurons[f"{name}_low"]
        assert (width.dropna() > 0.005).all()
    assert ((found.flips["high"] - found.flips["low"]).dropna() > 0.005).all()
    assert not (found.layers["notable_low"] == found.layers["notable_high"]).any()


def test_subjects_that_attribution_has_at_another_level_are_said_to_have_no_tokens() -> None:
    _, found = ablated()
    without_tokens = found.neurons.assign(notable_positions=0, difference=np.nan)
    sentences = Agreement.of(without_tokens).sentences("heads")
    assert sentences[0] == (
        "The attribution names no tokens for these heads, so none is compared. Make one of their "
        "level (attribute --level head --name NAME), and ablate with --attribution NAME."
    )
