"""What is known of the text, the model and the optimizer of a custom loop."""

from analysis.run.run import Run
from capture.optim.optimizer_config import describe_optimizer


def loop_settings(run: Run) -> dict[str, str]:
    """Return what a run of a custom loop knows of its text, model and optimizer, in words."""
    tokens = ""
    if not run.has_numbered_datums:
        some = "" if run.length_N is None else "at most "
        tokens = f" of {some}{run.config.corpus.window} tokens"
    optimizer, rate = run.config.training.optimizer, run.config.training.learning_rate
    return {
        "corpus": f"{run.num_datums:,} datums{tokens}",
        "model": "of the custom training loop",
        "training": f"{describe_optimizer(optimizer)}, initial learning rate {rate:g}",
    }
