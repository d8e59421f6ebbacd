"""How alike do two runs represent the same text? Linear CKA of their layers, at their ends.

Source: Kornblith et al. 2019, equation 5 with linear kernels; rotations and scales of a layer do
not count. The text is held-out text of the first run, on which both models must run.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.run.run import Run
from analysis.trajectory.config import TrajectoryConfig
from analysis.trajectory.metrics.row import state_name
from analysis.trajectory.metrics.similarity import Centred, states_at
from analysis.trajectory.observed.model import Observed
from analysis.trajectory.observed.text import Text, text_of_run
from analysis.transitions.runs.tables import SIMILARITY
from capture.errors import CaptureError


def find_similarity(runs: Sequence[Run], *, seed: int) -> tuple[pd.DataFrame, list[str]]:
    """Return ``SIMILARITY`` of the first run and each other, and sentences on those left out."""
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    try:
        text = text_of_run(runs[0], TrajectoryConfig(seed=seed))
        own = layers_of(runs[0], text)
    except CaptureError as error:
        return empty(), [f"Layers are not compared: {error}"]
    for other in runs[1:]:
        others, reason = layers_beside(runs[0], own, other, text)
        if reason:
            notes.append(f"Layers of {runs[0].uri} and {other.uri} are not compared: {reason}")
            continue
        pair = {"run": runs[0].uri, "other": other.uri}
        rows += [pair | row for row in compared(own, others, seed)]
    return pd.DataFrame(rows, columns=pd.Index(SIMILARITY.names)), notes


def layers_beside(
    first: Run, own: Sequence[Centred], other: Run, text: Text
) -> tuple[list[Centred], str]:
    """Return the layers of another run, and why they are not compared; empty if they are.

    ``own``: the layers of the first run.
    """
    try:
        if other.tokens != first.tokens:
            return [], "their vocabularies differ."
        others = layers_of(other, text)
    except CaptureError as error:
        return [], str(error)
    return others, "" if own and others else "one has no stack of layers."


def layers_of(run: Run, text: Text) -> list[Centred]:
    """Return the residual states of a run's last model; empty if it has no stack of layers."""
    model = Observed(run.steps_done, run.network())
    if "layers" not in model.parts or text.held_out is None:
        return []
    return [Centred.of(state_MD) for state_MD in states_at(model, text)]


def compared(
    own: Sequence[Centred], others: Sequence[Centred], seed: int
) -> Iterator[dict[str, Any]]:
    """Yield the CKA of each layer of one run with each of another, beside permuted positions."""
    order_M = np.random.default_rng(seed).permutation(len(own[0].state_MD))
    for number, one in enumerate(own):
        for other_number, other in enumerate(others):
            yield {
                "layer": state_name(number),
                "other_layer": state_name(other_number),
                "cka": one.similarity(other),
                "null": one.similarity(other, order_M),
                "positions": len(one.state_MD),
            }


def empty() -> pd.DataFrame:
    return SIMILARITY.empty_table().to_pandas()
