"""``ontogeny seeds``: train a configuration with several seeds, and compare the runs."""

import argparse
import re
from typing import TYPE_CHECKING

from capture.errors import ConfigError
from cluster.commands.dynamics.compare import add_choices, compare_config, run_comparison
from cluster.options.analysis import add_tables
from cluster.options.arguments import (
    add_command,
    add_config,
    add_overrides,
    add_quiet,
    add_ray,
    add_workers,
)

if TYPE_CHECKING:
    from rich.console import Console

    from capture.config.settings import Config
    from cluster.options.arguments import Commands

TEXT = """\
Trains a configuration with several seeds, one run in URI-seeds/ for each, and compares them as
ontogeny compare does. --vary weights changes the initial weights only, --vary order the order of
the data only. A finished run is not trained again, and an interrupted one is resumed. With --ray
the runs train in parallel on the workers of a cluster. Tables go to analysis/seeds/ of the first
run.

  ontogeny seeds demo --seeds 0:10
  ontogeny seeds demo --seeds 0:10 --vary order --workers 2
  ontogeny seeds demo --seeds 0:20 --axis model.width=50,100,200
  ontogeny seeds demo run.uri=s3://bucket/runs/demo --seeds 0:50 --ray"""


def add(commands: "Commands") -> None:
    made = add_command(commands, "seeds", run, "Train with several seeds, and compare.", TEXT)
    add_config(made, "YAML file, or demo, wikitext2, gpt2-tiny, …")
    add_overrides(made)
    text = "seeds A to B - 1, or a list such as 0,3,4"
    made.add_argument("--seeds", default="0:5", metavar="A:B", help=f"{text}; default 0:5")
    text = "what the seed changes: all (seed, default), initial weights, or order of the data"
    made.add_argument("--vary", choices=("seed", "weights", "order"), default="seed", help=text)
    text = "train with each of these values of a setting, too; the values form groups"
    made.add_argument("--axis", metavar="KEY=V,V[,V…]", help=text)
    add_workers(made)
    add_ray(made)
    add_choices(made)
    add_tables(made)
    add_quiet(made, json=True)


def run(arguments: argparse.Namespace, console: "Console") -> int:
    from capture.config.reading import read_config
    from cluster.local.seeded_runs import seeded_configs, train_seeds
    from cluster.options.machines import HERE, machines, retraining_sweep
    from cluster.terminal.progress import counting

    config = read_config(arguments.config, arguments.overrides)
    seeds = parse_seeds(arguments.seeds)
    configs = seeded_configs(config, seeds, arguments.vary, arguments.axis)
    if len(configs) < 2:
        raise ConfigError("--seeds", f"got {arguments.seeds}, a comparison needs two or more")
    chosen = compare_config(arguments)
    silent = arguments.quiet or arguments.json
    with machines(arguments) as on:
        if on is not HERE:
            require_shared(config)
        sweep = retraining_sweep(arguments, on, config.run.uri)
        with counting(console, "training", "runs", quiet=silent) as report:
            found = train_seeds(configs, report, sweep=sweep)
    arguments.run, arguments.others = found[0], found[1:]
    return run_comparison(arguments, console, "seeds", chosen)


def require_shared(config: "Config") -> None:
    """Raise ``StoreError`` or ``ConfigError`` unless all workers of the cluster can see the runs.

    A file is written where they are going to be, and removed again.
    """
    from capture.store import Store
    from cluster.on_ray.job import require_persistent
    from cluster.on_ray.mapreduce import require_visible

    require_persistent("run.uri", config.run.uri)
    store, key = Store(f"{config.run.uri}-seeds", config.store), "seeds-begin"
    store.put(key, b"")
    try:
        require_visible(store, key)
    finally:
        store.delete(key)


def parse_seeds(text: str) -> list[int]:
    """Parse A:B or a list; raises ``ConfigError`` for anything else."""
    if found := re.fullmatch(r"(\d{1,9}):(\d{1,9})", text, re.ASCII):
        first, end = int(found[1]), int(found[2])
        if first < end:
            return list(range(first, end))
    elif re.fullmatch(r"\d{1,9}(,\d{1,9})*", text, re.ASCII):
        return [int(part) for part in text.split(",")]
    raise ConfigError("--seeds", f"got {text!r}, must be like 0:10 or 0,3,4")
