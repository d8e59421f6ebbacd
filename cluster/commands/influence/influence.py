"""``ontogeny influence``: which training data made the model do this?"""

import argparse
from functools import cache
from typing import TYPE_CHECKING, Any

from capture.errors import ConfigError, at_least
from cluster.options.analysis import Analysis, Counting, add_model, add_tables, run_analysis
from cluster.options.arguments import (
    add_any_number,
    add_command,
    add_quiet,
    add_ray,
    add_run,
    num_workers,
)
from cluster.options.choices import JUDGE_METHODS
from cluster.options.lifetime import explain_lifetime
from cluster.options.ranges import parse_steps

if TYPE_CHECKING:
    from rich.console import Console

    from analysis.influence.config import InfluenceConfig
    from analysis.influence.queries.query import Query
    from analysis.influence.tables import Influence
    from analysis.jobs.question import Question
    from analysis.run.run import Run
    from cluster.options.arguments import Commands
    from cluster.options.machines import Machines

TEXT = """\
Computes the influence of every training datum on queries about the model. A QUERY is one of

  loss[:SPLIT]             mean loss of a split; default: the held-out text
  datum:[SPLIT:]N          mean loss of one datum, as in datum:validation:0
  token:[SPLIT:]TOKEN      mean log-probability of a token where it comes next
  text:FILE                mean loss of a text
  neuron:UNIT:N[@TOKEN]    how much ablating a neuron lowers the log-probability of a token, on
  row:UNIT:N[@TOKEN]       held-out text; by default the token that it lowers most. Also for a row
  head:UNIT:N[@TOKEN]      or an attention head, as in head:layers.0.self_attn:2
  parameter:UNIT:INDEX     one weight
  norm:UNIT:N              norm of a neuron's weights
  direction:MODULE:FILE    mean activation at a module's input along the vector in a .npy file
  function:MODULE:NAME     your Python function of (model, weights)
  FILE.jsonl               many queries: {"prompt": …, "completion": …} or {"kind": …} a line

or a completion: --prompt, --completion and --rival. Methods:

  unrolled   what the query would be without a datum: minus its influence, to first order. The
             derivative goes back through all later training
  path       what a datum did as training happened; with weight decay, adds up to the query's change
  outliers   a preview from the recorded shifts alone
  ekfac      influence functions at the last checkpoint, with kronfluence
  adamw-influence
             an approximation of unrolled under Adam and AdamW, with dattri-llm
  gradient, cosine, tallies, bm25, common-tokens, random: other scores, to compare with

A command that was stopped resumes. Tables go to RUN/analysis/influence/. Judge methods with
ontogeny lds. Whether unrolled influence predicts retraining is checked with each answer, by
retrainings without a random tenth of the datums, which the run keeps.

  ontogeny influence runs/demo datum:validation:0 --method path --name datum
  ontogeny influence runs/demo --prompt "the value of" --completion "the object" --name fact
  ontogeny influence runs/demo neuron:layers.2.linear2.weight:17 --name neuron"""


def add(commands: "Commands") -> None:
    made = add_command(commands, "influence", run, "Which data made the model do this.", TEXT)
    add_run(made)
    add_any_number(made, "queries", metavar="QUERY", help="see above")
    made.add_argument("--prompt", metavar="TEXT", help="text before a completion")
    text = "the query is its log-probability after the prompt"
    made.add_argument("--completion", metavar="TEXT", help=text)
    text = "subtract the log-probability of this completion"
    made.add_argument("--rival", metavar="TEXT", help=text)
    text = "see above, default unrolled"
    made.add_argument(
        "--method", choices=JUDGE_METHODS, default="unrolled", metavar="METHOD", help=text
    )
    text = "steps A to B - 1, or one step, whose datums count; default all"
    made.add_argument("--steps", metavar="A:B", default=":", help=text)
    text = "parts of training to report separately, default 5"
    made.add_argument("--windows", type=int, default=5, metavar="N", help=text)
    text = "share path influence among the captured units; takes as long again for each"
    made.add_argument("--units", action="store_true", help=text)
    text = (
        "path: read stored factors instead of replaying steps, as is always done for the run of a "
    )
    text += "custom loop; not shared among words"
    made.add_argument("--factors", action="store_true", help=text)
    text = "retrainings without a random tenth of the datums that confirm unrolled influence, "
    text += "default 2; 0: none"
    made.add_argument("--checks", type=int, default=2, metavar="N", help=text)
    text = "memory for states of training in GiB, default 2; less takes longer"
    made.add_argument("--memory", type=float, default=2.0, metavar="GIB", help=text)
    text = "processes for --checks and for path influence under SGD without momentum, default 1; "
    text += "other sweeps take one"
    made.add_argument("--workers", type=num_workers, default=1, metavar="N", help=text)
    add_ray(made)
    text = "datums shown on each side, default 5"
    made.add_argument("--rows", type=int, default=5, metavar="N", help=text)
    explain_lifetime(made)
    add_model(made)
    add_tables(made)
    add_quiet(made, json=True)


def run(arguments: argparse.Namespace, console: "Console") -> int:
    from analysis.influence.config import InfluenceConfig

    at_least("--rows", arguments.rows, 1)
    if not arguments.memory > 0:
        raise ConfigError("--memory", f"got {arguments.memory}, must be above 0")
    first_step, end_step = parse_steps(arguments.steps)
    config = InfluenceConfig(
        method=arguments.method,
        first_step=first_step,
        end_step=end_step,
        windows=arguments.windows,
        positions_of=max(20, arguments.rows),
        units=arguments.units,
        factors=arguments.factors,
        checks=arguments.checks,
        max_bytes=int(arguments.memory * 2**30),
    )
    asked = asked_queries(arguments)
    rows, workers = arguments.rows, arguments.workers
    found = influence(asked, config, name=arguments.name, rows=rows, workers=workers)
    return run_analysis(arguments, console, found)


def asked_queries(arguments: argparse.Namespace) -> list[str | dict[str, Any]]:
    """Return the queries as words and JSON; raise ``ConfigError`` if there is none."""
    completion = {
        key: getattr(arguments, key)
        for key in ("prompt", "completion", "rival")
        if getattr(arguments, key) is not None
    }
    for key in ("prompt", "completion"):
        if completion and key not in completion:
            raise ConfigError(f"--{key}", "is missing", "Give --prompt and --completion")
    asked = [*arguments.queries, *([completion] if completion else [])]
    if not asked:
        remedy = "Give a QUERY, as in loss, or --prompt and --completion"
        raise ConfigError("QUERY", "is missing", remedy)
    return asked


def progress_of(method: str) -> tuple[str, str]:
    """Return what a method does, for the progress bar, and the unit that it is counted in."""
    from analysis.influence.config import SWEEPS

    if method in SWEEPS:
        return "going back through training", "steps"
    return f"scoring datums by {method}", "pass"


def influence(
    asked: list[str | dict[str, Any]],
    config: "InfluenceConfig",
    *,
    name: str,
    rows: int,
    workers: int = 1,
) -> "Analysis[Influence]":
    """The influence on queries, of which ``rows`` datums on each side are printed."""
    from analysis.influence.influence import (
        compute_influence,
        discard_unfinished,
        influence_question,
        wanted_steps,
    )
    from analysis.influence.queries.parsing import build_queries
    from analysis.influence.tables import write_influence
    from cluster.options.machines import path_sweep, sweep_of
    from cluster.terminal.influence.influence import show_influence

    @cache
    def queries(run: "Run") -> "list[Query]":
        return build_queries(run, asked)

    def question(run: "Run") -> "Question":
        return influence_question(queries(run), config)

    def compute(run: "Run", on: "Machines", counting: Counting) -> "Influence":
        with counting(*progress_of(config.method)) as report:
            machines = path_sweep(on, workers, run.uri)
            sweeps = {"machines": machines, "retraining": sweep_of(on, workers, run.uri)}
            return compute_influence(run, queries(run), config, report, name=name, **sweeps)

    def write(run: "Run", found: "Influence", asked: "Question", name: str) -> None:
        write_influence(run, found, asked, name)
        discard_unfinished(run, name)

    def show(console: "Console", run: "Run", found: "Influence") -> None:
        show_influence(console, run, found, rows=rows)

    def check(run: "Run") -> None:
        wanted_steps(run, config)

    return Analysis(question, compute, write, show, check)
