"""Find quanta: group positions by gradients and by loss curves, and time the fall of each group.

Gradients are those of the last measured checkpoint. Shapes: K checkpoint, M position, N datum,
T position of a window, U unit.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
import torch

from analysis.jobs.tables import concat_frames
from analysis.trajectory.checkpoints.source import Source, observe
from analysis.trajectory.checkpoints.spacing import choose_steps
from analysis.trajectory.observed.model import Observed
from analysis.trajectory.observed.passes import losses
from analysis.trajectory.observed.text import Text
from analysis.transitions.curves import MIN_POINTS
from analysis.transitions.quanta import clusters
from analysis.transitions.quanta.config import QuantaConfig
from analysis.transitions.quanta.falls import Falls
from analysis.transitions.quanta.gradients import compared_units, position_grams
from analysis.transitions.quanta.positions import Chosen, choose_positions
from analysis.transitions.quanta.rows import (
    change_rows,
    cluster_rows,
    curve_rows,
    fall_row,
    position_rows,
)
from analysis.transitions.quanta.tables import (
    CHANGES,
    CLUSTERS,
    CURVES,
    FALLS,
    GRADIENTS,
    LOSS_CURVES,
    POSITIONS,
    Quanta,
)
from capture.errors import ConfigError

Report = Callable[[int, int], None]
"""Called with the checkpoints done and all of them."""


def find_quanta(
    source: Source, text: Text, config: QuantaConfig, report: Report | None = None
) -> Quanta:
    """Return the quanta of a training.

    Raises ``ConfigError`` without held-out text, for fewer than 8 checkpoints, for a model without
    layers or with too few positions, and ``UnitError`` for a unit that cannot be split by position.
    """
    if text.held_out is None:
        raise ConfigError("quanta", "needs a text to predict", "Give one with --text")
    steps = chosen_steps(source, config)
    chosen: Chosen | None = None
    model: Observed | None = None
    rows: list[np.ndarray] = []
    for done, model in enumerate(observe(source, steps)):
        chosen = chosen or positions_for(model, text, config)
        model.before = None
        loss_NT = losses(model, chosen.windows, text.num_tokens)
        offset = chosen.windows.token_NT.shape[1] - loss_NT.shape[1]
        rows.append(loss_NT[chosen.row_M, chosen.place_M - offset])
        if report:
            report(done + 1, len(steps))
    assert chosen
    assert model
    gram_UMM = grams(model, chosen, config)
    return grouped(np.array(steps), np.array(rows), gram_UMM, chosen, text, config)


def chosen_steps(source: Source, config: QuantaConfig) -> list[int]:
    """Return the steps to measure; raise ``ConfigError`` for fewer than 8.

    Log-spaced ones are of all steps, most of them replayed, where too few have a checkpoint.
    """
    asked, available = config.checkpoints_chosen, source.available
    if source.replays and len(available) < MIN_POINTS and asked.steps == "log":
        available = range(max(available, default=0) + 1)
    replays = {"replays": source.replays}
    steps = choose_steps(str(asked.steps), available, asked.checkpoints, source.where, **replays)
    if len(steps) < MIN_POINTS:
        problem = f"gives {len(steps)} checkpoints, and a change point needs {MIN_POINTS}"
        raise ConfigError("--steps", problem, "Choose more, as in --steps 0,1,2,4,8,16,32:200:8")
    return steps


def positions_for(model: Observed, text: Text, config: QuantaConfig) -> Chosen:
    """Return the positions; raise ``ConfigError`` if the text or the model has too few."""
    assert text.held_out
    compared_units(model, config.units)  # refused before anything is measured
    one = torch.from_numpy(text.held_out.token_NT[:1])
    scored = model.logits(one).shape[1]
    found = choose_positions(text.held_out, scored, config.positions, config.seed)
    if len(found.row_M) < 4 * config.clusters:
        problem = f"the text has {len(found.row_M)} positions, too few for {config.clusters}"
        raise ConfigError("--clusters", problem, "Ask for fewer, or give more text")
    return found


def grams(model: Observed, chosen: Chosen, config: QuantaConfig) -> np.ndarray:
    """Return the inner products of the positions' gradients at a checkpoint, [U, M, M]."""
    token_MT = torch.from_numpy(chosen.windows.token_NT[chosen.row_M])
    scored = model.logits(token_MT[:1]).shape[1]
    place_M = torch.from_numpy(chosen.place_M - (token_MT.shape[1] - scored))
    units = compared_units(model, config.units)
    return position_grams(model, units, token_MT, torch.from_numpy(chosen.target_M), place_M)


def grouped(
    step_K: np.ndarray,
    loss_KM: np.ndarray,
    gram_UMM: np.ndarray,
    chosen: Chosen,
    text: Text,
    config: QuantaConfig,
) -> Quanta:
    """Cluster positions by gradients and by curves, beside shuffled ones, and make the tables."""
    rng = np.random.default_rng([config.seed, 1])
    count, seed = config.clusters, config.seed
    cosine_MM = clusters.cosines(gram_UMM)
    own = {
        GRADIENTS: clusters.by_gradients(cosine_MM, count, seed),
        LOSS_CURVES: clusters.by_curves(loss_KM, count, seed),
    }
    datum_M = chosen.row_M
    falls = {k: Falls.of(step_K, loss_KM, own[k], datum_M=datum_M, seed=seed) for k in own}
    rows = [fall_row(kind, -1, falls[kind], loss_KM, own[kind], cosine_MM) for kind in own]
    without_cuts = partial(Falls.of, step_K, datum_M=datum_M, seed=seed, cuts=False)
    sizes: list[tuple[int, float]] = []
    for draw in range(config.draws):
        null_MM = clusters.cosines(clusters.shuffled(gram_UMM, rng))
        dealt_M = clusters.by_gradients(null_MM, count, seed)
        found = without_cuts(loss_KM, dealt_M)
        rows.append(fall_row(GRADIENTS, draw, found, loss_KM, dealt_M, null_MM))
        sizes += zip(found.count_C, clusters.within(null_MM, dealt_M), strict=True)
        walked_KM = clusters.shuffled_curves(loss_KM, rng)
        walked_M = clusters.by_curves(walked_KM, count, seed)
        found = without_cuts(walked_KM, walked_M)
        rows.append(fall_row(LOSS_CURVES, draw, found, walked_KM, walked_M, cosine_MM))
    cosine = {kind: clusters.within(cosine_MM, cluster_M) for kind, cluster_M in own.items()}
    tables = [cluster_rows(k, falls[k], cosine[k], sizes, own[k], chosen, text) for k in own]
    return Quanta(
        concat_frames(tables, CLUSTERS),
        concat_frames([curve_rows(kind, found) for kind, found in falls.items()], CURVES),
        concat_frames([change_rows(kind, found) for kind, found in falls.items()], CHANGES),
        concat_frames([position_rows(chosen, text, own, loss_KM)], POSITIONS),
        concat_frames([pd.DataFrame(rows)], FALLS),
        notes_on(chosen, gram_UMM),
    )


def notes_on(chosen: Chosen, gram_UMM: np.ndarray) -> list[str]:
    zero = int((np.einsum("umm->m", gram_UMM) <= 0).sum())
    lines = [f"{len(chosen.row_M):,} positions of {len(chosen.number_N):,} datums."]
    if zero:
        lines.append(f"{zero} of them have a zero gradient, and are like no other.")
    return lines
