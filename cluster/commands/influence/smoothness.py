"""``ontogeny smoothness``: can counterfactuals about a run hold? Asked before training."""

import argparse
from typing import TYPE_CHECKING

from cluster.options.arguments import add_command, add_config, add_overrides

if TYPE_CHECKING:
    from rich.console import Console

    from cluster.options.arguments import Commands

TEXT = """\
Takes the first steps of the run in memory several times: in float64 as they are, in float64 from
initial weights with a tiny random change, and in float32. Writes nothing. If the change grows by a
constant factor per step, training is chaotic: no method can say what the model would be with other
data, and unrolled influence is wrong beyond some steps. Also prints what makes training smooth.
Counterfactuals need smooth training, and more: each answer of ontogeny influence checks itself.

  ontogeny smoothness demo
  ontogeny smoothness smooth --steps 200"""


def add(commands: "Commands") -> None:
    summary = "Say before training whether counterfactuals can hold."
    made = add_command(commands, "smoothness", run, summary, TEXT)
    add_config(made, "YAML file, demo, smooth, or wikitext2")
    add_overrides(made)
    text = "steps to take after those of the warm-up, default 100"
    made.add_argument("--steps", type=int, default=100, metavar="N", help=text)
    text = "random changes of the initial weights, default 3"
    made.add_argument("--directions", type=int, default=3, metavar="N", help=text)
    text = "seed of the changes, default 0"
    made.add_argument("--seed", type=int, default=0, metavar="N", help=text)
    made.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace, console: "Console") -> int:
    from capture.config.reading import read_config
    from capture.retraining.smoothness import SmoothnessConfig, measure_smoothness
    from cluster.terminal.influence.smoothness import show_smoothness
    from cluster.terminal.progress import counting

    how = SmoothnessConfig(
        steps=arguments.steps, directions=arguments.directions, seed=arguments.seed
    )
    config = read_config(arguments.config, arguments.overrides)
    with counting(console, "taking steps", "steps", quiet=arguments.json) as report:
        found = measure_smoothness(config, how, report)
    show_smoothness(console, config, found, as_json=arguments.json)
    return 0
