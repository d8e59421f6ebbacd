"""Transitions of trajectories of other people's checkpoints, at places that are no runs."""

from collections.abc import Sequence
from dataclasses import replace

from analysis.jobs.loose_tables import read_loose_table, write_loose_tables
from analysis.jobs.question import Question
from analysis.jobs.tables import marker_key, table_set
from analysis.trajectory.tables import JOB as TRAJECTORIES
from analysis.trajectory.tables import TRAJECTORY
from analysis.transitions.config import TransitionsConfig
from analysis.transitions.curves import COLUMNS
from analysis.transitions.page import transitions_page
from analysis.transitions.tables import JOB, SCHEMAS, Transitions
from analysis.transitions.transitions import Report, transitions_of
from capture.format.markers import START
from capture.store import Store


def holds_trajectory(store: Store, name: str) -> bool:
    """Whether a place is no run, and holds tables of ``ontogeny trajectory`` of this name."""
    job = table_set(TRAJECTORIES, name)
    return not store.exists(START) and store.exists(marker_key(job))


def transitions_of_places(
    stores: Sequence[Store], config: TransitionsConfig, report: Report | None = None
) -> Transitions:
    """Return the transitions of the trajectories at these places; nothing is said of a record.

    Raises ``RunError`` for a place without such tables, and what ``transitions_of`` raises.
    """
    job = table_set(TRAJECTORIES, config.trajectory)
    frames = {
        store.uri: read_loose_table(store, job, "trajectory", TRAJECTORY)[COLUMNS]
        for store in stores
    }
    return transitions_of(frames, config, report)


def write_at(store: Store, found: Transitions, question: Question, name: str = "") -> None:
    """Write the tables and the page under ``analysis/transitions/`` of the first place."""
    frames = {table: getattr(found, table) for table in SCHEMAS}
    pages = {"index.html": transitions_page(found, question, store.uri)}
    steps = int(found.points["step"].max())
    asked = replace(question, steps=steps)
    write_loose_tables(store, table_set(JOB, name), frames, SCHEMAS, asked, pages)
