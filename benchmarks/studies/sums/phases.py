"""Hidden states of the runs of a study, as ``ontogeny transitions`` finds them, and their table.

Source: Hu, Chen, Saphra and Cho 2023, "Latent State Models of Training Dynamics".
"""

from collections.abc import Sequence

import numpy as np

import ontogeny
from benchmarks.studies.study import Results, step_of, table
from ontogeny import Run


def hidden_states(runs: Sequence[Run], metrics: Sequence[str], target: str) -> Results:
    """Return the number of states, those of random walks, and each run's path through them."""
    config = ontogeny.TransitionsConfig(
        metrics=metrics, target=target, states=12, record=False, draws=99
    )
    found = ontogeny.transitions(runs, config)
    choice, summary = found.state_choice, found.state_summary
    paths = []
    for run in runs:
        own = found.states[found.states["run"] == run.uri].sort_values("step")
        starts = own[own["state"] != own["state"].shift()]
        paths.append(list(zip(starts["state"].tolist(), starts["step"].tolist(), strict=True)))
    return {
        "chosen": int(choice.loc[choice["chosen"], "states"].item()),
        "tried": int(choice["states"].max()),
        "null": np.repeat(choice["states"], choice["null_chosen"]).tolist(),
        "paths": paths,
        "detours": summary.loc[summary["detour"], "state"].tolist(),
    }


def states_table(found: Results, seeds: Sequence[int]) -> list[str]:
    """Return the path of each seed through the states."""
    rows = []
    for seed, path in zip(seeds, found["paths"], strict=True):
        told = ", ".join(f"{state} from step {step_of(step)}" for state, step in path)
        rows.append([str(seed), str(len({state for state, _ in path})), told])
    return table(["seed", "states", "path"], rows)


def states_sentence(found: Results) -> str:
    """Return how many states there are, beside random walks, and which are detours."""
    null = f"{min(found['null'])} to {max(found['null'])}"
    detours = ", ".join(map(str, found["detours"])) or "none"
    return (
        f"One model for all {len(found['paths'])} seeds: {found['chosen']} states of at most "
        f"{found['tried']} have the smallest BIC. {len(found['null'])} sets of random walks of the "
        f"same shape get {null}. Detours: {detours}."
    )
