"""Quanta of a run, and of other people's checkpoints; the tables of both."""

from dataclasses import replace

from analysis.jobs.loose_tables import write_loose_tables
from analysis.jobs.question import Question
from analysis.jobs.tables import table_set, write_tables
from analysis.run.run import Run
from analysis.trajectory.checkpoints.of_folder import checkpoints_at
from analysis.trajectory.checkpoints.of_run import RunCheckpoints
from analysis.trajectory.observed.files import FileTexts
from analysis.trajectory.observed.text import text_of_run
from analysis.trajectory.stored import text_of_checkpoints
from analysis.transitions.quanta.config import QuantaConfig
from analysis.transitions.quanta.page import quanta_page
from analysis.transitions.quanta.quanta import Report, find_quanta
from analysis.transitions.quanta.tables import JOB, SCHEMAS, Quanta
from capture.store import Store


def quanta_of_run(run: Run, config: QuantaConfig, report: Report | None = None) -> Quanta:
    """Return the quanta of a run; raises what ``find_quanta`` raises, and ``RunError``."""
    text = text_of_run(run, config.checkpoints_chosen)
    return find_quanta(RunCheckpoints(run), text, config, report)


def quanta_of_checkpoints(
    texts: FileTexts, config: QuantaConfig, report: Report | None = None
) -> Quanta:
    """Return the quanta of stored checkpoints; raises what ``trajectory_of_checkpoints`` and
    ``find_quanta`` raise."""
    source = checkpoints_at(texts.place)
    text = text_of_checkpoints(source, texts, config.checkpoints_chosen)
    return find_quanta(source, text, config, report)


def quanta_question(config: QuantaConfig, texts: FileTexts | None = None) -> Question:
    return Question.of(JOB, config, *([texts] if texts else []))


def write_quanta(run: Run, found: Quanta, question: Question, name: str = "") -> None:
    """Write the tables and the page to a run, in place of those with the same name."""
    frames = {table: getattr(found, table) for table in SCHEMAS}
    pages = {"index.html": quanta_page(found, question, run.uri)}
    write_tables(run, table_set(JOB, name), frames, SCHEMAS, question, pages)


def write_at(store: Store, found: Quanta, question: Question, place: str, name: str = "") -> None:
    """Write the tables and the page under ``analysis/quanta/`` of a store."""
    frames = {table: getattr(found, table) for table in SCHEMAS}
    pages = {"index.html": quanta_page(found, question, place)}
    asked = replace(question, steps=int(found.curves["step"].max()))
    write_loose_tables(store, table_set(JOB, name), frames, SCHEMAS, asked, pages)
