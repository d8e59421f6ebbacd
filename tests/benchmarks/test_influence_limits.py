"""Sentences of docs/results.md on influence for neurons and heads follow from the stored values."""

from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from analysis.influence.baselines.methods import RANDOM
from analysis.measures.correlation import spearman
from benchmarks.effects.evidence import SHIFTS
from benchmarks.effects.judge import KNOWN, UNROLLED
from benchmarks.effects.removals import LOWEST, SAME
from benchmarks.effects.tables import interval_over_tokens, removal_columns
from benchmarks.harness.markdown import bold, cell, number
from benchmarks.influence_tables import EFFECTS, read

PAGE = Path(__file__).parents[2] / "docs/results.md"
CONFIGS = "influence-configs-2-core-epyc.json"
KEPT = ("0.9", "0.5")


def assert_said(*sentences: str) -> None:
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    for sentence in sentences:
        assert sentence in page, f"docs/results.md lacks: {sentence}"


def is_neuron(queries: list[dict[str, Any]]) -> np.ndarray:
    return np.array([query["level"] == "neuron" for query in queries])


def test_what_limits_unrolled_influence() -> None:
    found = read(EFFECTS)
    kept, queries = found["keep"]["0.9"], found["queries"]
    neuron_Q = is_neuron(queries)
    assert_said(f"It is {np.mean(np.array(kept['lds'][KNOWN])[neuron_Q]):.2f}, so an effect")

    correlation_Q = np.array(kept["lds"]["unrolled"])[neuron_Q]
    positions_Q, value_Q = (
        np.array([query[key] for query in queries])[neuron_Q] for key in ("positions", "value")
    )
    by_positions, by_value = (
        stats.spearmanr(correlation_Q, own_Q) for own_Q in (positions_Q, value_Q)
    )
    assert_said(
        f"scored at {positions_Q.min()} positions and at {positions_Q.max()}",
        f"number of positions {number(by_positions.statistic)}, p = {by_positions.pvalue:.1f})",
        f"small effects and large ones ({by_value.statistic:.2f}, p = {by_value.pvalue:.1f})",
    )

    ratio_Q = np.array(found["reproducibility"]["spread"]) / np.array(kept["spread"])
    allowed_Q = np.sqrt(np.clip(1 - ratio_Q**2, 0, 1))
    assert_said(
        f"vary by {np.median(ratio_Q):.2f} of their spread",
        f"above {np.quantile(ratio_Q, 0.9):.2f} for one in ten",
        f"allow a mean correlation of {allowed_Q.mean():.2f}",
    )

    cosine_M, size_M = (np.array(kept["weights"][key]) for key in ("cosine", "size"))
    assert_said(
        f"a cosine of {cosine_M.mean():.2f} with the true one, and {size_M.mean():.2f} of its "
        f"length (means over {len(cosine_M)} subsets)"
    )


def test_what_a_larger_epsilon_changes() -> None:
    found = read(EFFECTS)
    runs = [found["epsilon"][name] for name in ("epsilon 1e-4", "as above")]
    neuron_Q = is_neuron(found["queries"])[: len(runs[0]["lds"])]
    cosines = [f"{np.mean(run['cosine']):.2f}" for run in runs]
    losses = [f"{run['validation loss']:g}" for run in runs]
    neurons, heads = (
        [cell(np.array(run["lds"])[own_Q].tolist()) for run in runs]
        for own_Q in (neuron_Q, ~neuron_Q)
    )
    assert_said(
        f"The cosine is {cosines[0]} instead of {cosines[1]} (the length still "
        f"{np.mean(runs[0]['size']):.2f})",
        f"The correlation is {neurons[0]} instead of {neurons[1]} for the first "
        f"{neuron_Q.sum()} neurons, and {heads[0]} instead of {heads[1]} for the heads",
        f"The held-out loss is {losses[0]} instead of {losses[1]},",
    )


def test_the_aims_of_the_small_smooth_run() -> None:
    found = read(CONFIGS)["runs"]["smooth"]["effects"]
    neuron_Q = is_neuron(found["queries"])
    kept = [found["keep"][share] for share in KEPT]
    unrolled = [np.array(own["unrolled"], float) for own in kept]
    counts = [int(np.isfinite(own_Q[neuron_Q]).sum()) for own_Q in unrolled]
    rows = {
        "losses of ten held-out datums": [own["ten losses"] for own in kept],
        f"neurons (n = {counts[0]} and {counts[1]})": [own_Q[neuron_Q] for own_Q in unrolled],
        f"heads (n = {(~neuron_Q).sum()})": [own_Q[~neuron_Q] for own_Q in unrolled],
    }
    for name, (most, half) in rows.items():
        assert_said(f"| {name} | {cell(list(most))} | {cell(list(half))} |")
    cosines, sizes = ([np.mean(own[key]) for own in kept] for key in ("cosine", "size"))
    assert_said(
        f"weights is {cosines[0]:.2f} and {cosines[1]:.2f}, its length {sizes[0]:.2f} and "
        f"{sizes[1]:.2f}"
    )
    median = np.median(np.abs(np.array(found["value"], float)[neuron_Q]))
    assert_said(f"half of the neurons' effects are below {median:.3f} nats")


def test_a_second_seed() -> None:
    found = read(EFFECTS)
    second = found["second seed"]["seed 1"]
    lds = second["lds"]
    for name, values, queries in (
        ("unrolled, first seed", found["second seed"]["as above"][UNROLLED], found["queries"]),
        ("unrolled, second seed", lds[UNROLLED], second["queries"]),
        ("random, second seed", lds[RANDOM], second["queries"]),
        (f"*{KNOWN}*, second seed", lds[KNOWN], second["queries"]),
    ):
        neuron_Q, value_Q = is_neuron(queries), np.array(values)
        both = (value_Q[neuron_Q].tolist(), value_Q[~neuron_Q].tolist())
        assert_said(f"| {name} | {' | '.join(map(cell, both))} |")
    assert len(second["weights"]["cosine"]) == 12


def test_what_removal_leaves_of_neurons() -> None:
    found = read(EFFECTS)
    removal, queries = found["removal"], found["queries"]
    rows = [row for row in removal["queries"] if queries[row]["level"] == "neuron"]
    own = [removal["queries"].index(row) for row in rows]
    left = {name: np.array(removal["left"][name])[own] for name in (UNROLLED, LOWEST)}
    value_Q = np.array([queries[row]["value"] for row in rows])
    token_Q = [queries[row]["token"] for row in rows]
    count, unrolled_Q = len(rows), left[UNROLLED]
    low, high = interval_over_tokens(unrolled_Q, token_Q)
    assert_said(
        f"the datums ({removal['datums']}) that a method names are masked",
        f"They share one model and {removal['controls']} random sets.",
        f"| named by | neurons (n = {count}) | heads (n = {len(removal['queries']) - count}) |",
        f"It is at most 0.5 for {(unrolled_Q <= 0.5).sum()} of the {count} neurons, and for "
        f"{(unrolled_Q < left[LOWEST]).sum()} of the {count} below what each of the "
        f"{removal['controls']} random sets leaves",
        f"(rank correlation {spearman(value_Q, unrolled_Q):.2f}): the sum of the effects falls to "
        f"{(unrolled_Q * value_Q).sum() / value_Q.sum():.2f}.",
        f"The {count} neurons have {len(set(token_Q))} tokens; the interval over tokens instead of "
        f"neurons is {low:.2f} to {high:.2f}.",
    )


def test_the_page_on_attribution_repeats_what_removal_leaves() -> None:
    page = (PAGE.parent / "concepts/attribution-and-ablation.md").read_text(encoding="utf-8")
    column = removal_columns(read(EFFECTS))[0]
    for name, row in {
        SHIFTS: "outliers: what moved the neuron most",
        RANDOM: "random choice, 16 times",
        SAME: "unrolled influence on the effect of another neuron with the same token",
        UNROLLED: "unrolled influence on the neuron's effect",
    }.items():
        assert f"| {row} | {cell(column[name])} |" in page


def test_the_evidence_of_attribute_predicts_nothing() -> None:
    found = read(EFFECTS)
    neuron_Q = is_neuron(found["queries"])
    found_Q = {name: np.array(own)[neuron_Q] for name, own in found["keep"]["0.9"]["lds"].items()}
    record = set(found_Q) - {"unrolled", "random", "bm25", "common-tokens", KNOWN}
    largest = max(abs(np.nanmean(found_Q[name])) for name in record)
    unnamed = np.isnan(found_Q["tokens that attribute --study names"]).sum()
    assert_said(
        f"every one of `attribute` is within {largest:.2f} of 0",
        f"(For {unnamed} of the neurons, `--study` names no token.)",
    )


def test_the_shipped_configurations() -> None:
    runs = read(CONFIGS)["runs"]
    smooth = configuration(runs["smooth"], digits=2)
    demo = configuration(runs["demo (the study's training)"], digits=0)
    assert_said(
        f"| `smooth` | {' | '.join([bold(smooth[0]), *smooth[1:]])} |",
        f"| `demo`, the study's | {' | '.join(demo)} |",
    )


def configuration(run: dict[str, Any], digits: int) -> list[str]:
    """Return the cells of a configuration's row; ``digits``: those of the departures."""
    correlations = [cell(run["lds, keep 0.9"][name]) for name in ("unrolled", "bm25", "random")]
    low, high = (f"{own:.{digits}f}" for own in (min(run["departure"]), max(run["departure"])))
    return [*correlations, f"{low} to {high}", f"{run['validation loss']:.2f}"]
