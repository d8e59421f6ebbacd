"""The trajectory of other people's checkpoints: measure them, and write the tables at a place."""

from dataclasses import replace

from analysis.jobs.loose_tables import write_loose_tables
from analysis.jobs.question import Question
from analysis.jobs.tables import table_set
from analysis.trajectory.checkpoints.of_folder import StoredCheckpoints, checkpoints_at
from analysis.trajectory.checkpoints.pretrained import longest_window
from analysis.trajectory.config import TrajectoryConfig
from analysis.trajectory.observed.files import FileTexts, text_of_files
from analysis.trajectory.observed.text import Text
from analysis.trajectory.page.page import trajectory_page
from analysis.trajectory.tables import JOB, SCHEMAS, Trajectory
from analysis.trajectory.trajectory import Report, measure
from capture.store import Store


def trajectory_of_checkpoints(
    texts: FileTexts, config: TrajectoryConfig, report: Report | None = None
) -> Trajectory:
    """Measure stored checkpoints.

    Raises ``ConfigError`` if there are fewer than two or one cannot be read, ``CorpusError`` for a
    text that cannot be used, and what ``measure`` raises.
    """
    source = checkpoints_at(texts.place)
    text = text_of_checkpoints(source, texts, config)
    return measure(source, text, config, report)


def text_of_checkpoints(
    source: StoredCheckpoints, texts: FileTexts, config: TrajectoryConfig
) -> Text:
    """Return the text for the last checkpoint's model, whose vocabulary and window all have."""
    last = source.read(source.names[max(source.names)])
    return text_of_files(
        texts,
        source.tokenizer,
        num_tokens=last.whole.config.vocab_size,
        longest=longest_window(last),
        config=config,
    )


def checkpoints_question(texts: FileTexts, config: TrajectoryConfig) -> Question:
    return Question.of(JOB, config, texts)


def write_at(
    store: Store, found: Trajectory, question: Question, place: str, name: str = ""
) -> None:
    """Write the tables and the page under ``analysis/trajectory/`` of a store."""
    frames = {table: getattr(found, table) for table in SCHEMAS}
    steps = int(found.checkpoints["step"].max())
    pages = {"index.html": trajectory_page(found, question, place)}
    asked = replace(question, steps=steps)
    write_loose_tables(store, table_set(JOB, name), frames, SCHEMAS, asked, pages)
