"""Attribute the groups of a level (neurons, heads, …) to the tokens and datums that moved them.

1. Evidence is summed by (group, token), from outlier rows (``analysis.attribution.row_evidence``)
   or from tallies (``analysis.attribution.tally_evidence``).
2. In each group, tokens that stand out against the background are chosen
   (``analysis.measures.selection``).
3. A second pass over the outlier rows finds when the chosen tokens moved the group and in which
   direction (``analysis.attribution.token_history``), and the strongest row of each datum.

``AttributionConfig.study()`` is the published study's method: single weights; all tokens of the
datums behind each outlier, counted and compared with all datums; a neuron takes the tokens of its
weights (``analysis.attribution.pooling``).

The record shows what happened in training. It does not show what the model would be without a
datum; ``analysis.ablation`` and retraining test that.

In frames, ``group`` is an index into ``Groups`` until ``label_groups`` replaces it.

Shapes: G group, K kept (group, datum), J chosen (group, token), W window of training.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analysis.attribution.config import AttributionConfig
from analysis.attribution.pooling import neurons_of, pooled_tokens, pooled_windows
from analysis.attribution.row_evidence import details_from_rows, evidence_from_rows, group_sums
from analysis.attribution.row_passes import OutlierRows
from analysis.attribution.sparse_sums import SparseSums
from analysis.attribution.strongest_rows import GroupDatumPairs, StrongestRows
from analysis.attribution.tables import (
    CONTRIBUTIONS,
    DATUMS,
    GROUPS,
    JOB,
    PARAMETERS,
    TABLES,
    TOKENS,
    WINDOWS,
    Attribution,
)
from analysis.attribution.tally_evidence import TallyEvidence
from analysis.attribution.token_evidence import TokenDetails, TokenEvidence, choose_tokens
from analysis.jobs.job import Runner
from analysis.jobs.question import Question
from analysis.jobs.tables import concat_frames, table_set, write_tables
from analysis.levels import Groups
from analysis.lifetime.run import LifetimeRun, lifetime_run, require_positions
from analysis.lifetime.shares import contribution_frames
from analysis.run.run import Run


@dataclass(frozen=True, eq=False)
class Findings:
    """Results for the named groups of one level."""

    groups: Groups
    rows_G: np.ndarray
    weight_G: np.ndarray
    strength_G: np.ndarray
    """Sort key of the groups, strongest first."""
    tokens: pd.DataFrame
    """group, token_id, rank, …: one row per chosen (group, token), by group, then rank."""
    windows: pd.DataFrame
    """group, token_id, window, …: one row per chosen (group, token) and window."""
    datums: pd.DataFrame
    """group, datum, rows, …: by group, then weight descending."""


def attribute(run: Run, run_job: Runner, config: AttributionConfig) -> Attribution:
    """Find the tokens and datums that moved each group most.

    Raises ``RunError`` if the run has no committed steps, lacks any of the configured steps, has no
    group of the level, or has no tallies where ``config.evidence`` needs them; with
    ``config.lifetime`` also what ``lifetime_run`` raises.
    """
    if config.lifetime:
        run = lifetime_run(run)
        if config.level == "unit" and config.evidence in ("target", "input"):
            require_positions(run)
    tallies = TallyEvidence.of(run, config) if config.reads_tallies else None
    rows = OutlierRows.of(run, run_job, config)
    groups = tallies.groups if tallies else rows.groups()
    collected = rows.collect(groups, tokens=tallies is None)
    evidence = tallies.evidence() if tallies else evidence_from_rows(rows, groups, collected)
    chosen = choose_tokens(evidence, config.select, config.background, config.selection)
    neurons, pool_G = pooling(rows, groups)
    datums = most_weighted(collected.datums.regrouped(pool_G), config.max_datums)
    pairs = GroupDatumPairs(datums.group_K, datums.item_K, int(pool_G.max()) + 1, run.num_datums)
    # Tallies know the history of tokens themselves; the rows only give the strongest of each datum.
    second = rows.history(groups, chosen[:0] if tallies else chosen, pairs, pool_G)
    if tallies:
        details = tallies.details(chosen)
    else:
        details = details_from_rows(rows, groups, chosen, second.history, evidence.train_V)
    rows_G = group_sums(collected.datums, groups.num_groups)[: groups.num_named]
    by_datum = datum_frame(datums, second.strongest)
    tokens, windows = with_details(chosen, details), window_frame(chosen, details)
    strength_G = relative_weights(evidence) if tallies else evidence.weight_G
    own = Findings(groups, rows_G, evidence.weight_G, strength_G, tokens, windows, by_datum)
    found = [own] if neurons is None else [pooled(own, neurons, pool_G), without_datums(own)]
    tables = tables_of(run, found, parameter_frame(run, own, config))
    return replace(tables, contributions=contribution_frame(run, config))


def contribution_frame(run: Run, config: AttributionConfig) -> pd.DataFrame:
    """Return ``CONTRIBUTIONS``: of neurons, if lifetime shifts of all steps are counted."""
    end = run.steps_done if config.end_step is None else config.end_step
    whole = range(config.first_step, end) == range(run.steps_done)
    frames = []
    if isinstance(run, LifetimeRun) and config.level == "neuron" and whole:
        by = "input" if config.evidence.startswith("input") else "target"
        frames = list(contribution_frames(run, by, config.selection.most))
    return concat_frames(frames, CONTRIBUTIONS)


def write_attribution(
    run: Run, found: Attribution, question: Question | None = None, name: str = ""
) -> None:
    """Write the tables to ``run.tables``, as the set with this name."""
    write_tables(run, table_set(JOB, name), vars(found), TABLES, question)


# --- frames ---------------------------------------------------------------------------------------


def with_details(chosen: pd.DataFrame, details: TokenDetails) -> pd.DataFrame:
    """Return the chosen tokens with count, up, down, strengthened and weakened added."""
    counts = {"count": details.count_J}
    signs = ("up", "down", "strengthened", "weakened")
    return chosen.assign(**counts, **{name: getattr(details, f"{name}_J") for name in signs})


def window_frame(chosen: pd.DataFrame, details: TokenDetails) -> pd.DataFrame:
    """Return weight and expected weight of each chosen (group, token) in each window."""
    num_windows, num_chosen = details.weight_WJ.shape
    repeated = np.repeat(np.arange(num_chosen), num_windows)
    window = np.tile(np.arange(num_windows), num_chosen)
    return pd.DataFrame(
        {
            "group": chosen["group"].to_numpy()[repeated],
            "token_id": chosen["token_id"].to_numpy()[repeated],
            "window": window,
            "first_step": details.first_steps[window],
            "end_step": details.end_steps[window],
            "weight": details.weight_WJ.T.ravel(),
            "expected": details.expected_WJ.T.ravel(),
        }
    )


def most_weighted(datums: SparseSums, most: int) -> SparseSums:
    """Return the ``most`` datums of each group with the largest weight; ties go to the lowest."""
    weight_K = datums.value_CK[-1]
    order_K = np.lexsort((datums.item_K, -weight_K, datums.group_K))
    group_K = datums.group_K[order_K]
    rank_K = np.arange(len(group_K)) - np.searchsorted(group_K, group_K)
    return datums.where(np.sort(order_K[rank_K < most]))


def datum_frame(datums: SparseSums, strongest: StrongestRows) -> pd.DataFrame:
    """Return the kept datums of each group with their strongest rows, by group, then weight."""
    rows_K, weight_K = datums.value_CK[0], datums.value_CK[-1]
    names = ("step", "position", "shift")
    frame = pd.DataFrame(
        {"group": datums.group_K, "datum": datums.item_K, "rows": rows_K, "weight": weight_K}
        | {name: getattr(strongest, f"{name}_K") for name in names}
    )
    order = np.lexsort((frame["datum"], -frame["weight"], frame["group"]))
    return frame.iloc[order].reset_index(drop=True)


# --- parameters and their neurons -----------------------------------------------------------------


def pooling(rows: OutlierRows, groups: Groups) -> tuple[Groups | None, np.ndarray]:
    """Return neurons to pool parameters to, and the group that each group is pooled to, -1: none.

    Only parameters are pooled, and only if the run has neurons; otherwise the first value is None.
    """
    if groups.level == "parameter":
        return neurons_of(groups, rows.run.layout)
    return None, np.arange(groups.num_groups)


def pooled(own: Findings, neurons: Groups, pool_G: np.ndarray) -> Findings:
    """Pool the findings of parameters to neurons."""
    neuron_R = pool_G[: own.groups.num_named]
    inside_R = neuron_R >= 0
    rows_G, weight_G = (
        np.bincount(neuron_R[inside_R], value_R[inside_R], neurons.num_named)
        for value_R in (own.rows_G, own.weight_G)
    )
    tokens, windows = pooled_tokens(own.tokens, pool_G), pooled_windows(own.windows, pool_G)
    return Findings(neurons, rows_G, weight_G, weight_G, tokens, windows, own.datums)


def relative_weights(evidence: TokenEvidence) -> np.ndarray:
    """Return weights divided by the mean of their family: tallies of units differ in scale."""
    members_F, sum_F = (
        np.bincount(evidence.family_G, weight_G) for weight_G in (None, evidence.weight_G)
    )
    mean_F = sum_F / np.maximum(members_F, 1)
    return evidence.weight_G / np.where(mean_F > 0, mean_F, 1)[evidence.family_G]


def without_datums(own: Findings) -> Findings:
    return replace(own, datums=own.datums[:0])


def parameter_frame(run: Run, own: Findings, config: AttributionConfig) -> pd.DataFrame:
    """Return the table ``PARAMETERS``; empty unless parameters were chosen by *study*."""
    if config.level != "parameter" or config.select != "study":
        return PARAMETERS.empty_table().to_pandas()
    tokens, groups = own.tokens, own.groups
    group = tokens["group"].to_numpy()
    unit = np.array(groups.units, object)[group]
    fan_in = np.array([run.layout.shapes[name][-1] for name in unit], np.int64)
    index, weight = groups.number_G[group], own.weight_G[group]
    return tokens.assign(
        unit=unit,
        index=index,
        row=index // fan_in,
        column=index % fan_in,
        rows=own.rows_G[group],
        rank=group,  # parameters are numbered by rank, see parameters_at
        token=names_of(run, tokens["token_id"]),
        frequency=tokens["weight"] / weight,
        train_frequency=tokens["expected"] / weight,
    )


# --- tables ---------------------------------------------------------------------------------------


def tables_of(run: Run, found: list[Findings], parameters: pd.DataFrame) -> Attribution:
    """Return the tables of one level, or of several concatenated."""
    every = zip(*(frames_of(run, findings) for findings in found), strict=True)
    schemas = (GROUPS, TOKENS, WINDOWS, DATUMS)
    tables = [concat_frames(frames, schema) for frames, schema in zip(every, schemas, strict=True)]
    return Attribution(*tables, parameters=concat_frames([parameters], PARAMETERS))


def frames_of(run: Run, found: Findings) -> tuple[pd.DataFrame, ...]:
    """Return groups with evidence, strongest first, and their tokens, windows and datums."""
    order_G = np.lexsort((-found.rows_G, -found.strength_G))
    order_G = order_G[(found.rows_G[order_G] > 0) | (found.weight_G[order_G] > 0)]
    rank_G = np.full(len(found.weight_G), -1)
    rank_G[order_G] = np.arange(len(order_G))
    tokens = found.tokens.assign(token=names_of(run, found.tokens["token_id"]))
    keys = ["group", "token_id"]
    windows = found.windows.merge(tokens[[*keys, "token", "rank"]], on=keys)
    groups = pd.DataFrame(
        {"group": order_G, "rows": found.rows_G[order_G], "weight": found.weight_G[order_G]}
    )
    lists = tokens.groupby("group")["token"].agg(list)
    named = [lists.get(group, []) for group in order_G]
    groups["tokens"] = pd.Series(named, groups.index, object)  # object dtype also when empty
    ordered = (
        groups,
        tokens.sort_values(["group", "rank"], key=sort_key(rank_G)),
        windows.sort_values(["group", "rank", "window"], key=sort_key(rank_G)),
        found.datums.sort_values("group", key=sort_key(rank_G), kind="stable"),
    )
    labels = found.groups.frame
    return tuple(label_groups(frame, labels) for frame in ordered)


def sort_key(rank_G: np.ndarray) -> Callable[[pd.Series], pd.Series]:
    """Return a ``key`` for ``sort_values``: ranks of groups, other columns unchanged."""
    return lambda column: column.map(rank_G.__getitem__) if column.name == "group" else column


def label_groups(frame: pd.DataFrame, labels: pd.DataFrame) -> pd.DataFrame:
    """Replace the group's index by the columns level, unit and group."""
    own = labels.iloc[frame["group"].to_numpy()].reset_index(drop=True)
    return pd.concat([own, frame.drop(columns="group").reset_index(drop=True)], axis=1)


def names_of(run: Run, token_id: pd.Series) -> np.ndarray:
    return np.array(run.tokens, object)[token_id.to_numpy()]
