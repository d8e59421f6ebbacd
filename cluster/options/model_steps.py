"""Options of analyses of a model: which weights, by the number of updates behind them."""

import argparse
from collections.abc import Callable

from capture.errors import ConfigError


def add_model_steps(made: argparse.ArgumentParser) -> None:
    """Add ``--step`` and ``--steps``."""
    text = "weights after N steps, replayed where there is no checkpoint; default the last"
    made.add_argument("--step", type=int, metavar="N", help=text)
    text = "ask at each of these steps, as in 0,10,20:100:20; tables are named NAME-step-N"
    made.add_argument("--steps", metavar="LIST", help=text)


def at_each_step(arguments: argparse.Namespace, ask: Callable[[argparse.Namespace], int]) -> int:
    """Ask once for each step that the arguments name; returns the largest exit code.

    ``ask`` is called with arguments whose ``step`` is one step. Raises ``ConfigError`` for steps
    that the run does not have, and for ``--steps`` beside ``--step`` or ``--json``.
    """
    if arguments.steps is None:
        return ask(arguments)
    for option, is_set in (("--step", arguments.step is not None), ("--json", arguments.json)):
        if is_set:
            problem = "got --steps too, which asks at several steps"
            raise ConfigError(option, problem, "Leave out one of them")
    code = 0
    for step in wanted_steps(arguments):
        own = {"step": step, "name": "-".join(filter(None, [arguments.name, f"step-{step}"]))}
        code = max(code, ask(argparse.Namespace(**(vars(arguments) | own))))
    return code


def wanted_steps(arguments: argparse.Namespace) -> list[int]:
    from analysis.run.run import open_run
    from analysis.trajectory.checkpoints.spacing import listed

    return listed(arguments.steps, open_run(arguments.run).steps_done)
