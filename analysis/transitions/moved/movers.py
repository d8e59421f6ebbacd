"""Ask a run's record which datums, neurons and directions moved more inside a window."""

from collections.abc import Mapping, Sequence
from math import ceil

import numpy as np
import pandas as pd

from analysis.jobs.job import Runner
from analysis.levels import Groups, groups_at
from analysis.run.run import Run
from analysis.transitions.moved.activity import Activity, ActivityJob
from analysis.transitions.moved.directions import directions_of
from analysis.transitions.moved.standing_out import Entries, stand_out
from analysis.transitions.tables import MOVED
from capture.errors import RunError

DIRECTION = "direction"
KEPT = 200
"""Rows of each kind that are kept."""
LONGEST_TEXT = 200


def window_of(first: float, end: float, num_steps: int) -> range:
    """Return the training steps of a window: step s acts between the model after s and s + 1
    updates."""
    start = min(int(first), num_steps)
    return range(start, min(max(ceil(end), start + 1), num_steps))


def find_movers(run: Run, window: range, run_job: Runner) -> tuple[pd.DataFrame, list[str]]:
    """Return ``MOVED`` for the window, and sentences about what could not be compared.

    Directions of training are those of the tables of ``ontogeny spectrum``, where the run has them.
    """
    groups, shards = neurons_of(run), run.shards("outliers")
    kinds: dict[str, Entries] = {}
    notes: list[str] = []
    if shards:
        job = ActivityJob(run.layout, run.num_datums, groups, run.steps_done)
        kinds |= kinds_of(run_job(job, shards), run.num_datums, groups)
        if partly := run.committed.partly_recorded("outliers"):
            notes.append(f"{run.uri} has {partly}; what is said of datums and neurons is of these.")
    else:
        notes.append(
            f"{run.uri} has no record of shifts, so nothing is said of datums and neurons."
        )
    directions, missing = directions_of(run)
    if directions is not None:
        kinds[DIRECTION] = directions
    found, short = compare_window(kinds, window, groups)
    datum = found["kind"] == "datum"
    texts = [str(run.texts[number])[:LONGEST_TEXT] for number in found.loc[datum, "number"]]
    found.loc[datum, "text"] = texts
    return found, [*notes, *short, *missing]


def neurons_of(run: Run) -> Groups | None:
    """Return the neurons of the captured units; None if there are none."""
    try:
        return groups_at("neuron", run.layout, heads=1)
    except RunError:
        return None


def kinds_of(activity: Activity, num_datums: int, groups: Groups | None) -> dict[str, Entries]:
    """Return the shares of datums, and of neurons if there are any, by step."""
    kinds = {"datum": Entries(activity.datums, num_datums, activity.steps, dense=False)}
    if groups is not None:
        kinds["neuron"] = Entries(activity.neurons, groups.num_named, activity.steps, dense=True)
    return kinds


def compare_window(
    kinds: Mapping[str, Entries], window: range, groups: Groups | None
) -> tuple[pd.DataFrame, list[str]]:
    """Return ``MOVED`` without texts, and notes."""
    frames, notes = [], []
    for kind, entries in kinds.items():
        found = stand_out(entries, window)
        if found is None:
            notes.append(
                f"The window of steps {window.start} to {window.stop - 1} is too long, or too near "
                f"or at an end of {entries.num_steps} steps, to compare {kind}s with other windows."
            )
            continue
        found = found.head(KEPT)
        units, numbers = names_of(kind, found["number"].to_numpy(), groups)
        frames.append(found.assign(kind=kind, unit=units, number=numbers, text=""))
    table = pd.concat([empty(), *frames], ignore_index=True) if frames else empty()
    return table[MOVED.names], notes


def names_of(
    kind: str, number_N: np.ndarray, groups: Groups | None
) -> tuple[Sequence[str], np.ndarray]:
    """Return unit and number of each entity."""
    if kind != "neuron" or groups is None:
        return [""] * len(number_N), number_N
    return [groups.units[group] for group in number_N], groups.number_G[number_N]


def empty() -> pd.DataFrame:
    return MOVED.empty_table().to_pandas()
