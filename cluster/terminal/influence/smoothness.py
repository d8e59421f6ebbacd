"""Print the answer of ``ontogeny smoothness``."""

import math
from typing import Any

from rich.console import Console

from capture.config.settings import Config
from capture.estimates.growth import LIMIT
from capture.retraining.smoothness import SATURATED, Smoothness
from cluster.terminal.as_json import print_as_json
from cluster.terminal.tables import data_table, print_table

SAYS = {
    "smooth": "[bold green]smooth[/]: small random changes do not grow over the whole run",
    "chaotic": "[bold red]chaotic[/]: counterfactuals do not hold over the whole run",
    "unclear": "[bold yellow]unclear[/]: take more steps (--steps) to decide",
}
ADVICE = """\
What makes training smooth: a smaller learning rate (or AdamW at about 1e-3 in place of SGD at a
large one), warm-up, a schedule that decays to 0, and a clipping norm that few gradients exceed. The
bundled configuration smooth is an example."""

NOT_SUFFICIENT = """\
Counterfactuals need this, and more: leaving out data moves the weights further, and along less
stable directions. The check of ontogeny influence, or ontogeny lds, confirms them afterwards."""


def show_smoothness(console: Console, config: Config, found: Smoothness, *, as_json: bool) -> None:
    """Print growth, exponent, clipping, rounding and the verdict, as a table or JSON."""
    if as_json:
        print_as_json(values_of(found))
        return
    exponent, taken = found.exponent, found.distance_KS.shape[1]
    table = data_table("measure", "value")
    table.add_row("steps taken", f"{taken:,} of {found.run_steps:,}")
    equal = f"{found.equal_steps:,.0f} at the learning rate measured"
    table.add_row("the run's steps are equal to", equal)
    table.add_row("growth of a change of the weights", f"{found.growth:,.4g} ×")
    interval = f"({exponent.low:+.4f} to {exponent.high:+.4f}, n = {exponent.num_steps} steps)"
    table.add_row("growth exponent per step", f"{exponent.per_step:+.4f} {interval}")
    table.add_row(f"steps until a change has grown by {LIMIT:g}", reach_text(found.reach))
    table.add_row("steps with clipped gradient", f"{found.clipped:.0%}")
    table.add_row("weights moved by rounding to float32", f"{found.rounding:.1e} of their norm")
    print_table(console, f"Smoothness of {config.run.uri}", table)
    if found.distance_KS[:, -1].max() > SATURATED:
        console.print(
            f"Stopped early: a change of {found.size:g} grew to {SATURATED:g} of the norm."
        )
    console.print(f"Training is {SAYS[found.verdict]}.")
    if found.verdict == "chaotic":
        console.print(f"They reach back about {found.reach:,.0f} steps at this learning rate.")
    console.print(NOT_SUFFICIENT if found.verdict == "smooth" else ADVICE)


def reach_text(steps: float) -> str:
    return "none: it does not grow" if math.isinf(steps) else f"{steps:,.0f}"


def values_of(found: Smoothness) -> dict[str, Any]:
    """All values, for JSON."""
    return {
        "verdict": found.verdict,
        "steps": found.distance_KS.shape[1],
        "run_steps": found.run_steps,
        "equal_steps": found.equal_steps,
        "growth": found.growth,
        "exponent": found.exponent,
        "reach_steps": found.reach,
        "clipped": found.clipped,
        "rounding": found.rounding,
        "distance": found.distance_KS,
    }
