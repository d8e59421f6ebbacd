"""Ablation tables equal counts and means over naive forward passes."""

import numpy as np
import pandas as pd
import pytest
from ablated import CONFIG, ablated, both, evaluated, prepared, rows_of, subject_of
from reference_ablation import (
    flips_by_token,
    log_probabilities,
    logits,
    predictions,
    records,
    without,
)
from scipy import stats

from analysis.ablation.ablate import ablate, write_ablation
from analysis.ablation.config import AblationConfig, SplitText
from analysis.ablation.flips import context, index_in_streak, layer_table
from analysis.ablation.subjects import Subject
from analysis.ablation.tables import TABLES
from analysis.jobs.tables import read_table
from analysis.measures.bootstrap import draw_counts

# --- what is ablated ------------------------------------------------------------------------------


def test_the_strongest_neurons_with_notable_tokens_are_ablated() -> None:
    _, found = ablated()
    wanted = [s for s in prepared()[1] if s.level == "neuron"][: CONFIG.max_neurons]
    assert list(map(subject_of, records(found.neurons))) == wanted
    for neuron in records(found.neurons):
        subject = subject_of(neuron)
        assert neuron.datums == len(evaluated(subject))
        assert neuron.attributed
        assert neuron.notable_tokens == 4
    assert found.neurons["datums"].max() == CONFIG.max_datums
    assert (found.neurons["kind"] == "zero").all()


@pytest.mark.parametrize("value", ["zero", "mean", "resample"])
@pytest.mark.parametrize("level", ["row", "head"])
def test_rows_and_heads_are_ablated_by_every_value(level, value) -> None:
    _, found = ablated(AblationConfig(level=level, value=value, scored_datums=3))
    (subject,) = (s for s in prepared()[1] if s.level == level)
    assert list(map(subject_of, records(found.neurons))) == [subject]
    for table in (found.neurons, found.layers, found.tokens):
        assert set(table["kind"]) == {value}
        assert set(table["level"]) == {level}
        assert set(table["unit"]) == {subject.unit}


def test_subjects_without_attributed_datums_are_evaluated_on_a_sample() -> None:
    only = ("layers.0.linear1.weight:2, 5", "layers.1.self_attn.in_proj_weight:4")
    run, found = ablated(AblationConfig(only=only, max_datums=30, seed=3))
    assert found.neurons["neuron"].tolist() == [2, 5, 4]
    assert found.neurons["attributed"].tolist() == [False, True, False]
    assert found.neurons["datums"].tolist()[::2] == [30, 30]
    assert found.neurons["notable_tokens"].tolist() == [0, 4, 0]
    again = ablate(run, AblationConfig(only=only[1:], max_datums=30, seed=3))
    whole = rows_of(found.flips, Subject(only[1][:-2], 4)).reset_index(drop=True)
    pd.testing.assert_frame_equal(again.flips, whole)


def test_all_ablates_every_neuron_of_the_mlps() -> None:
    _, found = ablated(AblationConfig(everything=True, max_datums=3, scored_datums=1))
    per_unit = found.neurons.groupby("unit")["neuron"].agg(list).to_dict()
    inputs = {"linear1": list(range(16)), "linear2": list(range(12))}
    assert per_unit == {
        f"layers.{layer}.{name}.weight": own for layer in (0, 1) for name, own in inputs.items()
    }


def test_ablation_on_held_out_text_uses_all_of_it() -> None:
    run, found = ablated(AblationConfig(split="validation", scored_datums=1000))
    text = SplitText.of(run, "validation")
    subject = subject_of(next(iter(records(found.neurons))))
    before_KT = predictions(run.model(), text.token_NT)
    after_KT = predictions(without(run.model(), subject), text.token_NT)
    first = found.neurons.iloc[0]
    assert not found.neurons["attributed"].any()
    assert first["positions"] == before_KT.size
    assert first["flips"] == (before_KT != after_KT).sum()
    clean = log_probabilities(logits(run.model(), text.token_NT), text.target_NT)
    changed = log_probabilities(
        logits(without(run.model(), subject), text.token_NT), text.target_NT
    )
    assert first["change"] == pytest.approx((changed - clean).mean(), abs=1e-5)


# --- flips ----------------------------------------------------------------------------------------


def test_flip_tables_equal_counting_position_by_position() -> None:
    run, found = ablated()
    assert found.flips["flips"].sum() > 0
    for neuron in records(found.neurons):
        subject = subject_of(neuron)
        before_KT, after_KT = both(run, subject, evaluated(subject))
        own = rows_of(found.flips, subject)
        counts = zip(own["count"], own["flips"], strict=True)
        wanted = flips_by_token(before_KT, after_KT, run.tokens)
        assert dict(zip(own["token"], counts, strict=True)) == wanted
        assert own["proportion"].tolist() == (own["flips"] / own["count"]).tolist()
        assert own["flips"].tolist() == (own["lost"] + own["gained"]).tolist()
        order = own.sort_values(["proportion", "count", "token_id"], ascending=[False, False, True])
        assert order.index.tolist() == own.index.tolist()
        assert neuron.flips == (before_KT != after_KT).sum()
        assert (neuron.positions, neuron.flipped_tokens) == (before_KT.size, len(own))


def test_intervals_of_proportions_hold_a_loop_over_draws_of_datums_and_wilsons() -> None:
    run, found = ablated()
    for neuron in records(found.neurons):
        subject = subject_of(neuron)
        before_KT, after_KT = both(run, subject, evaluated(subject))
        for row in records(rows_of(found.flips, subject)):
            here = (before_KT == row.token_id) | (after_KT == row.token_id)
            whole_K = here.sum(1)
            part_K = (here & (before_KT != after_KT)).sum(1)
            if (whole_K > 0).sum() < 2:
                assert np.isnan([row.low, row.high]).all()
                continue
            drawn = [(d @ part_K, d @ whole_K) for d in draw_counts(len(before_KT)) if d @ whole_K]
            ratios = [part / whole for part, whole in drawn]
            wanted = np.quantile(ratios, [0.025, 0.975], method="nearest")
            wilsons = stats.binomtest(row.flips, row.count).proportion_ci(method="wilson")
            wanted = [min(wanted[0], wilsons.low), max(wanted[1], wilsons.high)]
            np.testing.assert_allclose([row.low, row.high], wanted, rtol=1e-5)
            assert row.low <= row.proportion <= row.high


def test_moves_count_pairs_of_predictions_before_and_after() -> None:
    run, found = ablated()
    assert len(found.moves)
    for neuron in records(found.neurons):
        subject = subject_of(neuron)
        before_KT, after_KT = both(run, subject, evaluated(subject))
        flip_KT = before_KT != after_KT
        own = rows_of(found.moves, subject)
        moves = pd.Series(
            [
                (run.tokens[before], run.tokens[after])
                for before, after in zip(before_KT[flip_KT], after_KT[flip_KT], strict=True)
            ],
            dtype=object,
        )
        counts = dict(zip(zip(own["before"], own["after"], strict=True), own["count"], strict=True))
        assert counts == moves.value_counts().to_dict()
        assert own["count"].is_monotonic_decreasing


def test_notable_tokens_and_their_share_of_flips() -> None:
    run, found = ablated()
    for neuron in records(found.neurons):
        subject = subject_of(neuron)
        tokens = prepared()[1][subject][0]
        own = rows_of(found.flips, subject)
        assert own["notable"].tolist() == own["token_id"].isin(tokens).tolist()
        assert neuron.notable_flipped == own["notable"].sum()
        before_KT, after_KT = both(run, subject, evaluated(subject))
        notable_KT = np.isin(before_KT, tokens)
        for name, mask_KT in (("notable", notable_KT), ("other", ~notable_KT)):
            share = getattr(neuron, f"{name}_share")
            if mask_KT.any():
                assert share == pytest.approx((before_KT != after_KT)[mask_KT].mean())
            if mask_KT.any(1).sum() > 1:
                assert getattr(neuron, f"{name}_low") <= share + 1e-6
                assert share <= getattr(neuron, f"{name}_high") + 1e-6


def test_layers_are_means_over_their_neurons() -> None:
    run, found = ablated()
    assert found.layers["unit"].tolist() == [
        u for u in run.layout.names if ".linear" in u and u.endswith("weight")
    ]
    for layer in records(found.layers):
        own = found.neurons[found.neurons["unit"] == layer.unit]
        assert (layer.neurons, layer.flipped_tokens) == (len(own), own["flipped_tokens"].mean())
        shares = [n.notable_flipped / n.flipped_tokens for n in records(own) if n.flips]
        assert not shares or layer.notable_share == pytest.approx(np.mean(shares))
        if own["flipped_tokens"].nunique() == 1:
            assert np.isnan([layer.flipped_low, layer.flipped_high]).all()
            continue
        assert layer.flipped_low <= layer.flipped_tokens <= layer.flipped_high
        drawn = draw_counts(len(own)) @ own["flipped_tokens"].to_numpy() / len(own)
        wanted = np.quantile(drawn, [0.025, 0.975], method="nearest")
        np.testing.assert_allclose([layer.flipped_low, layer.flipped_high], wanted, rtol=1e-5)


def test_equal_neurons_and_single_ones_give_no_interval() -> None:
    _, found = ablated()
    equal = found.neurons.assign(flipped_tokens=5, notable_flipped=1)
    for neurons in (equal, found.neurons.drop_duplicates("unit")):
        table = layer_table(neurons, [])
        assert (
            table[["flipped_low", "flipped_high", "notable_low", "notable_high"]]
            .isna()
            .all(axis=None)
        )


def test_layers_of_units_that_were_not_captured_come_last() -> None:
    _, found = ablated()
    units = found.neurons["unit"].drop_duplicates().tolist()
    assert layer_table(found.neurons, units[1:])["unit"].tolist() == [*units[1:], units[0]]


# --- log-probabilities ----------------------------------------------------------------------------


def test_changes_by_target_equal_naive_forward_passes() -> None:
    run, found = ablated()
    for neuron in records(found.neurons):
        subject = subject_of(neuron)
        datums = evaluated(subject)[: CONFIG.scored_datums]
        token_NT, target_NT = run.token_NT[datums], run.target_NT[datums]
        change_NT = log_probabilities(
            logits(without(run.model(), subject), token_NT), target_NT
        ) - log_probabilities(logits(run.model(), token_NT), target_NT)
        own = rows_of(found.tokens, subject)
        assert sorted(own["token_id"]) == np.unique(target_NT).tolist()
        assert own["change"].is_monotonic_increasing
        assert own["notable"].tolist() == own["token_id"].isin(prepared()[1][subject][0]).tolist()
        for row in records(own):
            here_NT = target_NT == row.token_id
            assert row.count == here_NT.sum()
            assert row.token == run.tokens[row.token_id]
            assert row.change == pytest.approx(change_NT[here_NT].mean(), abs=1e-5)
            if here_NT.any(1).sum() > 1:
                assert row.low - 1e-6 <= row.change <= row.high + 1e-6
            else:
                assert np.isnan([row.low, row.high]).all()
        assert neuron.scored_datums == len(datums)
        assert neuron.change == pytest.approx(change_NT.mean(), abs=1e-5)
        assert neuron.change_low <= neuron.change + 1e-6
        assert neuron.change <= neuron.change_high + 1e-6


def test_no_datum_is_scored_if_scored_datums_is_zero() -> None:
    _, found = ablated(AblationConfig(max_neurons=2, max_datums=5, scored_datums=0))
    assert len(found.tokens) == 0
    assert found.neurons["change"].isna().all()


# --- contexts -------------------------------------------------------------------------------------


def test_contexts_show_the_flip_at_its_position() -> None:
    run, found = ablated()
    assert len(found.contexts) > 0
    texts = run.datums().set_index("datum")["text"]
    for row in records(found.contexts):
        words = [*texts[row.datum].split(), run.tokens[run.target_NT[row.datum, -1]]]
        flip = f"({row.before} {row.after})"
        assert row.token in (row.before, row.after)
        assert row.before != row.after
        assert row.target == words[row.position + 1]
        head, tail = words[: row.position + 1], words[row.position + 1 :]
        assert row.context == " ".join(["…", *head, flip, *tail, "…"])
    per_token = found.contexts.groupby(["unit", "neuron", "token"]).size()
    flips = found.flips.set_index(["unit", "neuron", "token"])["flips"]
    assert per_token.to_dict() == flips.clip(upper=CONFIG.contexts_per_token).to_dict()


def test_contexts_come_from_the_datums_of_largest_weight() -> None:
    run, found = ablated()
    for neuron in records(found.neurons):
        subject = subject_of(neuron)
        datums = evaluated(subject)
        before_KT, after_KT = both(run, subject, datums)
        for token, contexts in rows_of(found.contexts, subject).groupby("token"):
            token_id = run.tokens.index(str(token))
            here_KT = (before_KT != after_KT) & ((before_KT == token_id) | (after_KT == token_id))
            wanted = [(datums[k], t) for k, t in np.argwhere(here_KT)][: CONFIG.contexts_per_token]
            assert list(zip(contexts["datum"], contexts["position"], strict=True)) == wanted


def test_long_contexts_are_cut_on_both_sides() -> None:
    words = [f"w{i}" for i in range(60)]
    found = context(words, 30, "was", "were").split()
    assert found[:2] == ["…", "w11"]
    assert found[20:24] == ["w30", "(was", "were)", "w31"]
    assert found[-2:] == ["w50", "…"]


def test_indices_in_streaks() -> None:
    assert index_in_streak(np.array([4, 4, 7, 9, 9, 9])).tolist() == [0, 1, 0, 0, 1, 2]
    assert index_in_streak(np.zeros(0, int)).tolist() == []


def test_tables_read_back_as_they_were_written() -> None:
    run, found = ablated()
    write_ablation(run, found)
    for name, schema in TABLES.items():
        frame = read_table(run, "ablate", name, schema)
        assert frame.equals(getattr(found, name))
        assert frame.columns.tolist() == schema.names


def test_progress_counts_flips_and_scores() -> None:
    reports: list[tuple[int, int]] = []
    ablate(prepared()[0], CONFIG, lambda *done: reports.append(done))
    wanted = [min(len(evaluated(subject)), 20) for subject in prepared()[1]][: CONFIG.max_neurons]
    total = sum(wanted) + CONFIG.max_neurons * CONFIG.scored_datums
    assert reports == sorted(reports)
    assert (sum(wanted), total) in reports
    assert reports[-1] == (total, total)
