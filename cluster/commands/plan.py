"""``ontogeny plan``: what a run will cost, before you start it."""

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from capture.errors import ConfigError
from cluster.options.arguments import add_command, add_config, add_overrides

if TYPE_CHECKING:
    from rich.console import Console

    from cluster.options.arguments import Commands

TEXT = """\
Takes a few steps of the run in memory and extrapolates; writes nothing. With --model-params and
--tokens it estimates a transformer of any size instead, from assumptions that it prints:
ontogeny plan --model-params 175e9 --tokens 300e9 --gpus 1024"""


def add(commands: "Commands") -> None:
    made = add_command(
        commands, "plan", run, "Estimate the cost of a run before you start it.", TEXT
    )
    add_config(made, "YAML file, demo, or wikitext2", nargs="?")
    add_overrides(made)
    made.add_argument("--model-params", type=float, metavar="N", help="parameters of a large model")
    made.add_argument("--tokens", type=float, metavar="N", help="tokens that it is trained on")
    text = "tokens in a datum, default 2048"
    made.add_argument("--window", type=int, default=2048, metavar="N", help=text)
    text = "GPUs that train it, default 1"
    made.add_argument("--gpus", type=int, default=1, metavar="N", help=text)
    made.add_argument("--layers", type=int, metavar="N", help="layers; default from --model-params")
    made.add_argument("--width", type=int, metavar="N", help="features of a layer, with --layers")
    text = "tokens in the vocabulary, default that of GPT-3"
    made.add_argument("--vocabulary", type=int, default=50_257, metavar="N", help=text)
    text = "tokens of a step, default those of GPT-3"
    made.add_argument("--batch-tokens", type=int, default=3_200_000, metavar="N", help=text)
    made.add_argument("--json", action="store_true", help="print JSON, sizes in bytes and seconds")


def run(arguments: argparse.Namespace, console: "Console") -> int:
    from capture.config.reading import read_config
    from capture.errors import at_least
    from capture.estimates.large_models import ASSUMPTIONS, TrainingScale
    from cluster.terminal.plan_tables import show_plan, show_scale

    large = arguments.model_params, arguments.tokens
    if any(number is not None for number in (*large, arguments.layers, arguments.width)):
        if arguments.config:
            problem = (
                f"got the configuration {arguments.config!r} beside --model-params or --tokens"
            )
            raise ConfigError("ontogeny plan", problem, "Give one or the other")
        if None in large:
            named = zip(("--model-params", "--tokens"), large, strict=True)
            lacking = " and ".join(option for option, number in named if number is None)
            raise ConfigError("ontogeny plan", f"also needs {lacking} for a large model")
        at_least("--vocabulary", arguments.vocabulary, 1)
        at_least("--batch-tokens", arguments.batch_tokens, arguments.window)
        shape = {"layers": arguments.layers, "width": arguments.width}
        scale = TrainingScale(*large, window=arguments.window, gpus=arguments.gpus, **shape)
        given = replace(
            ASSUMPTIONS, vocabulary=arguments.vocabulary, batch_tokens=arguments.batch_tokens
        )
        show_scale(console, scale, given, as_json=arguments.json)
    elif arguments.config:
        config = read_config(arguments.config, arguments.overrides)
        show_plan(console, config, as_json=arguments.json)
    else:
        problem = "needs a CONFIG, or --model-params and --tokens"
        raise ConfigError("ontogeny plan", problem, "As in: ontogeny plan demo")
    return 0
