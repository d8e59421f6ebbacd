"""How much of each step lies in each direction of training, as ``ontogeny spectrum`` found them.

The matrix of all steps' gradients (or updates) is C = U S Vᵀ, so step t has the squared length
(s_k v_tk)² in direction k. A share is relative to the squared lengths of the step in all directions
that the tables hold.

Shapes: E entry (a step and a direction), S step.
"""

import numpy as np

from analysis.jobs.tables import marker_key, place_of, read_table
from analysis.run.run import Run
from analysis.spectra.tables import DIRECTIONS, STEPS
from analysis.transitions.moved.activity import Sums
from analysis.transitions.moved.standing_out import Entries

SPECTRUM = "spectrum"


def directions_of(run: Run) -> tuple[Entries | None, list[str]]:
    """Return the shares of directions by step, and a sentence if the run has none to compare.

    Reads the unnamed tables of ``ontogeny spectrum``, which must be about every step.
    """
    if not place_of(run, SPECTRUM).exists(marker_key(SPECTRUM)):
        return None, ["Directions are compared after: ontogeny spectrum."]
    steps = read_table(run, SPECTRUM, "steps", STEPS)
    values = read_table(run, SPECTRUM, "directions", DIRECTIONS).set_index("direction")["value"]
    if len(values) < 2 or set(steps["step"]) != set(range(run.steps_done)):
        return None, ["Directions are not compared: ontogeny spectrum left steps out."]
    size_E = np.square(values.loc[steps["direction"]].to_numpy() * steps["weight"].to_numpy())
    step_E, number_E = (steps[name].to_numpy(np.int64) for name in ("step", "direction"))
    total_S = np.bincount(step_E, size_E, minlength=run.steps_done)
    share_E = size_E / np.where(total_S > 0, total_S, 1.0)[step_E]
    count = int(number_E.max()) + 1
    return Entries(Sums.of(step_E, number_E, share_E), count, run.steps_done, dense=True), []
