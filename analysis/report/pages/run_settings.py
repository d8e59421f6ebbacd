"""The facts at the top of the report: what was trained, how, and which tables the pages show."""

from collections.abc import Mapping

from markupsafe import Markup

from analysis.report.drawing import markup
from analysis.report.drawing.markup import element, fact_list
from analysis.report.pages.sources import UsedTables
from analysis.run.datums.loop_settings import loop_settings
from analysis.run.run import Run
from capture.models import transformer as model
from capture.optim import schedule
from capture.optim.optimizer_config import describe_optimizer


def run_settings(run: Run, used: Mapping[str, UsedTables]) -> Markup:
    """Return facts of the run; ``used``: analysis → its tables and their question."""
    made, outliers = run.provenance, run.config.capture.outliers
    partly = run.committed.partly_recorded("outliers")
    finished = "complete" if run.steps_done == run.num_steps else "not finished"
    seed = "" if run.from_custom_loop else f", seed {run.config.run.seed}"
    return fact_list(
        [
            ("Run", markup.code(run.uri)),
            ("Progress", f"{run.steps_done:,} of {run.num_steps:,} steps ({finished})"),
            *training_settings(run),
            (
                "Recorded",
                f"shifts: {outliers.describe()}, among "
                f"{run.layout.size:,} parameters "
                f"in {len(run.layout.names)} units",
            ),
            *(("Recorded in part", text) for text in [partly] if text),
            *((f"Tables of {job}", tables_used(tables)) for job, tables in used.items()),
            ("Started", f"{made['started_at'][:10]} on {made['device']}{seed}"),
        ]
    )


def tables_used(tables: UsedTables) -> Markup:
    """Show where the tables of an analysis lie; their question, which is long, unfolds."""
    summary = element("summary", markup.code(tables.place))
    return element("details", summary, markup.code(tables.question))


def training_settings(run: Run) -> list[tuple[str, str]]:
    """Return text, model and optimizer, with labels; of a custom loop, what the run knows."""
    if run.from_custom_loop:
        known = loop_settings(run)
        return [
            ("Text", f"{known['corpus']}, vocabulary {run.num_tokens:,}"),
            ("Model", known["model"]),
            ("Training", known["training"]),
        ]
    config, training = run.config, run.config.training
    decline = schedule.describe_schedule(training.schedule, training.decay)
    return [
        (
            "Text",
            f"{config.corpus.kind}: {run.num_datums:,} windows of {config.corpus.window} "
            f"tokens, vocabulary {run.num_tokens:,}",
        ),
        ("Model", model.describe_model(config.model)),
        (
            "Training",
            f"{training.epochs} epochs of batches of {training.batch}, "
            f"{describe_optimizer(training.optimizer)}, learning rate "
            f"{training.learning_rate:g} {decline}, clip {training.clip:g}",
        ),
    ]
