"""What taught the groups of a level (neurons, heads, …)? The tokens that their evidence is of.

1. Evidence is added up by (group, token): from outlier rows (``analysis.attribution.row_evidence``)
   or from tallies (``analysis.attribution.tally_evidence``).
2. In each group the tokens are chosen that stand out against the background
   (``analysis.measures.selection``).
3. For these it is told when they were taught and in which direction
   (``analysis.attribution.token_history``), and for each group which datums moved it most,
   and by which row.

``AttributionConfig.study()`` is the published study's way: single weights, whole windows of the
datums behind each outlier, counted and compared with all datums; neurons take the tokens of their
weights (``analysis.attribution.pooling``).

Until tables are made, ``group`` in a frame is a group's place in its ``Groups``.

Shapes: G group, K kept (group, datum), J lesson: a group and a token chosen for it, W window of
training.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analysis.attribution.config import AttributionConfig
from analysis.attribution.pooling import neurons_of, pooled_tokens, pooled_windows
from analysis.attribution.row_evidence import group_sums, material_of, told_by_rows
from analysis.attribution.row_passes import OutlierRows
from analysis.attribution.sparse_sums import Sums
from analysis.attribution.strongest_rows import Pairs, Strongest
from analysis.attribution.tables import (
    DATUMS,
    GROUPS,
    JOB,
    PARAMETERS,
    TABLES,
    TOKENS,
    WINDOWS,
    Attribution,
)
from analysis.attribution.tally_evidence import Tallies
from analysis.attribution.token_evidence import Material, Told, choose_tokens
from analysis.jobs.job import Runner
from analysis.jobs.tables import joined, write_tables
from analysis.levels import Groups
from analysis.run.run import Run


@dataclass(frozen=True, eq=False)
class Findings:
    """What is known of the named groups of one level."""

    groups: Groups
    rows_G: np.ndarray
    weight_G: np.ndarray
    strength_G: np.ndarray
    """By what groups are ordered, strongest first."""
    tokens: pd.DataFrame
    """group, token_id, rank, …: a row a lesson, by group, then rank."""
    windows: pd.DataFrame
    """group, token_id, window, …: a row a lesson and window."""
    datums: pd.DataFrame
    """group, datum, rows, …: by group, then weight descending."""


def attribute(run: Run, run_job: Runner, config: AttributionConfig) -> Attribution:
    """Which tokens and datums taught what is asked about.

    Raises ``RunError`` if the run has no committed steps, none of those asked for, none of the
    groups, or no tallies where these are the evidence.
    """
    tallies = Tallies.of(run, config) if config.reads_tallies else None
    rows = OutlierRows.of(run, run_job, config)
    groups = tallies.groups if tallies else rows.groups()
    collected = rows.collect(groups, tokens=tallies is None)
    material = tallies.material() if tallies else material_of(rows, groups, collected)
    chosen = choose_tokens(material, config.select, config.background, config.selection)
    neurons, pool_G = pooling(rows, groups)
    datums = most_weighted(collected.datums.regrouped(pool_G), config.max_datums)
    pairs = Pairs(datums.group_K, datums.item_K, int(pool_G.max()) + 1, run.num_datums)
    taught = rows.tell(groups, chosen[:0] if tallies else chosen, pairs, pool_G)
    if tallies:
        told = tallies.told(chosen)
    else:
        told = told_by_rows(rows, groups, chosen, taught.lessons, material.train_V)
    rows_G = group_sums(collected.datums, groups.num_groups)[: groups.num_named]
    by_datum = datum_frame(datums, taught.strongest)
    tokens, windows = with_told(chosen, told), by_window(chosen, told)
    strength_G = relative(material) if tallies else material.weight_G
    own = Findings(groups, rows_G, material.weight_G, strength_G, tokens, windows, by_datum)
    found = [own] if neurons is None else [pooled(own, neurons, pool_G), without_datums(own)]
    return tables_of(run, found, parameter_frame(run, own, config))


def write_attribution(run: Run, found: Attribution) -> None:
    """Leave the tables in the run, under ``analysis/attribute/``."""
    write_tables(run, JOB, vars(found), TABLES)


# --- frames ---------------------------------------------------------------------------------------


def with_told(chosen: pd.DataFrame, told: Told) -> pd.DataFrame:
    """The chosen tokens with what is told of each beside its weight."""
    counts = {"count": told.count_J}
    signs = ("up", "down", "strengthened", "weakened")
    return chosen.assign(**counts, **{name: getattr(told, f"{name}_J") for name in signs})


def by_window(chosen: pd.DataFrame, told: Told) -> pd.DataFrame:
    """Weight and expected weight of each lesson in each window."""
    num_windows, num_lessons = told.weight_WJ.shape
    repeated = np.repeat(np.arange(num_lessons), num_windows)
    window = np.tile(np.arange(num_windows), num_lessons)
    return pd.DataFrame(
        {
            "group": chosen["group"].to_numpy()[repeated],
            "token_id": chosen["token_id"].to_numpy()[repeated],
            "window": window,
            "first_step": told.first_steps[window],
            "end_step": told.end_steps[window],
            "weight": told.weight_WJ.T.ravel(),
            "expected": told.expected_WJ.T.ravel(),
        }
    )


def most_weighted(datums: Sums, most: int) -> Sums:
    """Of each group the datums of most weight, ties by datum."""
    weight_K = datums.value_CK[-1]
    order_K = np.lexsort((datums.item_K, -weight_K, datums.group_K))
    group_K = datums.group_K[order_K]
    place_K = np.arange(len(group_K)) - np.searchsorted(group_K, group_K)
    return datums.where(np.sort(order_K[place_K < most]))


def datum_frame(datums: Sums, strongest: Strongest) -> pd.DataFrame:
    """The kept datums of each group with their strongest rows, by group, then weight."""
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
    """The groups that datums are told of, and the one that each group belongs to, -1 for none.

    Parameters are pooled to neurons, if the run has any; other groups stay what they are.
    """
    if groups.level == "parameter":
        return neurons_of(groups, rows.run.layout)
    return None, np.arange(groups.num_groups)


def pooled(own: Findings, neurons: Groups, pool_G: np.ndarray) -> Findings:
    """What is known of neurons from their parameters."""
    neuron_R = pool_G[: own.groups.num_named]
    inside_R = neuron_R >= 0
    rows_G, weight_G = (
        np.bincount(neuron_R[inside_R], value_R[inside_R], neurons.num_named)
        for value_R in (own.rows_G, own.weight_G)
    )
    tokens, windows = pooled_tokens(own.tokens, pool_G), pooled_windows(own.windows, pool_G)
    return Findings(neurons, rows_G, weight_G, weight_G, tokens, windows, own.datums)


def relative(material: Material) -> np.ndarray:
    """Weights in units of their family's mean: tallies of different units differ in scale."""
    members_F, sum_F = (
        np.bincount(material.family_G, weight_G) for weight_G in (None, material.weight_G)
    )
    mean_F = sum_F / np.maximum(members_F, 1)
    return material.weight_G / np.where(mean_F > 0, mean_F, 1)[material.family_G]


def without_datums(own: Findings) -> Findings:
    return replace(own, datums=own.datums[:0])


def parameter_frame(run: Run, own: Findings, config: AttributionConfig) -> pd.DataFrame:
    """``PARAMETERS`` of parameters by the study's method, else nothing."""
    if config.level != "parameter" or config.select != "study":
        return PARAMETERS.empty_table().to_pandas()
    tokens, groups = own.tokens, own.groups
    place = tokens["group"].to_numpy()
    unit = np.array(groups.units, object)[place]
    fan_in = np.array([run.layout.shapes[name][-1] for name in unit], np.int64)
    index, weight = groups.number_G[place], own.weight_G[place]
    return tokens.assign(
        unit=unit,
        index=index,
        row=index // fan_in,
        column=index % fan_in,
        rows=own.rows_G[place],
        rank=place,
        token=names_of(run, tokens["token_id"]),
        frequency=tokens["weight"] / weight,
        train_frequency=tokens["expected"] / weight,
    )


# --- tables ---------------------------------------------------------------------------------------


def tables_of(run: Run, found: list[Findings], parameters: pd.DataFrame) -> Attribution:
    """Tables of one level, or of several one after the other."""
    every = zip(*(frames_of(run, findings) for findings in found), strict=True)
    schemas = (GROUPS, TOKENS, WINDOWS, DATUMS)
    tables = [joined(frames, schema) for frames, schema in zip(every, schemas, strict=True)]
    return Attribution(*tables, parameters=joined([parameters], PARAMETERS))


def frames_of(run: Run, found: Findings) -> tuple[pd.DataFrame, ...]:
    """Groups that have evidence, strongest first, with their tokens, windows and datums."""
    order_G = np.lexsort((-found.rows_G, -found.strength_G))
    order_G = order_G[(found.rows_G[order_G] > 0) | (found.weight_G[order_G] > 0)]
    place_G = np.full(len(found.weight_G), -1)
    place_G[order_G] = np.arange(len(order_G))
    tokens = found.tokens.assign(token=names_of(run, found.tokens["token_id"]))
    keys = ["group", "token_id"]
    windows = found.windows.merge(tokens[[*keys, "token", "rank"]], on=keys)
    groups = pd.DataFrame(
        {"group": order_G, "rows": found.rows_G[order_G], "weight": found.weight_G[order_G]}
    )
    lists = tokens.groupby("group")["token"].agg(list)
    named = [lists.get(group, []) for group in order_G]
    groups["tokens"] = pd.Series(named, groups.index, object)  # also where there is none
    ordered = (
        groups,
        tokens.sort_values(["group", "rank"], key=by_place(place_G)),
        windows.sort_values(["group", "rank", "window"], key=by_place(place_G)),
        found.datums.sort_values("group", key=by_place(place_G), kind="stable"),
    )
    labels = found.groups.frame
    return tuple(labelled(frame, labels) for frame in ordered)


def by_place(place_G: np.ndarray) -> Callable[[pd.Series], pd.Series]:
    """A key to sort by: groups by their place, anything else as it is."""
    return lambda column: column.map(place_G.__getitem__) if column.name == "group" else column


def labelled(frame: pd.DataFrame, labels: pd.DataFrame) -> pd.DataFrame:
    """With level, unit and group in the place of the group's place."""
    own = labels.iloc[frame["group"].to_numpy()].reset_index(drop=True)
    return pd.concat([own, frame.drop(columns="group").reset_index(drop=True)], axis=1)


def names_of(run: Run, token_id: pd.Series) -> np.ndarray:
    return np.array(run.tokens, object)[token_id.to_numpy()]
