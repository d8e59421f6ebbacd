"""Can the neurons of a run be ablated on held-out text? Asked before any work is done."""

from analysis.run import custom_loop
from analysis.run.run import Run
from analysis.run.stored_run import Split
from capture.errors import RunError

HELD_OUT: tuple[Split, ...] = ("validation", "test")


def held_out_splits(run: Run) -> list[Split]:
    """Return the held-out splits that the run has, maybe none."""
    kept = {file.key for file in run.start.files_of("corpus")}
    return [split for split in HELD_OUT if f"corpus/{split}.parquet" in kept]


def obstacle_to_confirmation(run: Run) -> RunError | None:
    """Return why ``attribute --confirm`` cannot work on this run; None if it can.

    Only the configuration and the list of files are read. The model is asked about first: held-out
    text would not help a run whose model is missing.
    """
    if run.from_custom_loop and run.given.module is None:
        return custom_loop.no_model_error(run.uri)
    if run.config.model.kind == "mlp":
        problem = "has a perceptron, which --confirm cannot ablate"
        return RunError(run.uri, problem, "Leave out --confirm")
    if not held_out_splits(run):
        problem = "holds no held-out text to confirm tokens on"
        if run.from_custom_loop:
            problem = f"{problem}, since a custom loop records training datums alone"
            remedy = "Leave out --confirm; ablate and faithfulness --text train use training text"
            return RunError(run.uri, problem, remedy)
        return RunError(run.uri, problem, "Capture with corpus.validation_share above 0")
    return None
