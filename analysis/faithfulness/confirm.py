"""Confirm the tokens that attribution names for a neuron, by ablation on held-out text.

A token is confirmed for a neuron if the record names it *and* ablating the neuron moves its
log-probability on held-out text, more than it moves tokens that were not named and more than it did
in the initial weights (``analysis.measures.confirmation``), at a false discovery rate of 5 % over
all pairs tested. The effect must change the token's probability by 1 % or more.

The same procedure, with the same options, runs on three nulls, in which nothing should be
confirmed:

- *untrained model*: the record's tokens, with effects of the run's initial weights on one half of
  the held-out datums. They must be larger than those of the same weights on the other half.
- *shuffled words*: the effects of both models, assigned to the words of the text in random order.
- *exchanged tokens*: every neuron takes the tokens of another neuron of its unit.

Rows and heads are confirmed like neurons. Shapes: S neuron, V token of the vocabulary, W token with
enough positions, N datum, T position.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd

from analysis.ablation.log_probability import changes_by_label
from analysis.ablation.replacement import AblationPlan
from analysis.ablation.subjects import LEVELS
from analysis.attribution.tables import CONFIRMED, NULLS, Attribution
from analysis.faithfulness.confirmed_pairs import (
    NamedPairs,
    Verdicts,
    confirmed_rows,
    null_rows,
    untested,
)
from analysis.faithfulness.ground_truth import split_texts
from analysis.jobs.sweep import Sweep, in_turn
from analysis.jobs.tables import concat_frames
from analysis.levels import Level
from analysis.measures.agreement import MIN_POSITIONS
from analysis.measures.confirmation import Changes
from analysis.measures.nulls import EXCHANGED, RECORD, SHUFFLED, UNTRAINED
from analysis.run.ablatable import held_out_splits, obstacle_to_confirmation
from analysis.run.run import Run
from capture.errors import ConfigError, at_least
from capture.parts import KnownModel

Report = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class ConfirmConfig:
    """Settings of ``ontogeny attribute --confirm``."""

    max_datums: int = 1000
    """Largest number of held-out datums, drawn at random if there are more."""
    min_positions: int = MIN_POSITIONS
    """A token is tested if it is the target at this many held-out positions or more."""
    max_q: float = 0.05
    """Largest share of the confirmed pairs expected by chance (false discovery rate)."""
    seed: int = 0
    """Seed for drawing datums, shuffling the text and exchanging tokens."""

    def __post_init__(self) -> None:
        at_least("confirm.max_datums", self.max_datums, 1)
        at_least("confirm.min_positions", self.min_positions, 2)
        at_least("confirm.seed", self.seed, 0)
        if not 0 < self.max_q <= 1:
            raise ConfigError("confirm.max_q", f"got {self.max_q}, must be above 0 and at most 1")


@dataclass(frozen=True)
class Confirmed:
    """The part of a question that asks for confirmation."""

    confirm: ConfirmConfig


def confirm(
    run: Run,
    found: Attribution,
    config: ConfirmConfig,
    report: Report | None = None,
    sweep: Sweep = in_turn,
) -> Attribution:
    """Return the attribution with ``CONFIRMED`` and ``NULLS`` filled in.

    Ablates every group that has named tokens on the held-out text, in the trained model and in the
    initial one; whole units and single parameters cannot be ablated and are left out. ``report`` is
    called with (neuron, datum) pairs done and their total. Raises ``RunError`` if the run has no
    held-out text, or a model that cannot be ablated.
    """
    table = found.tokens[found.tokens["level"].isin(LEVELS)]
    text = held_out_text(run, config)
    count_V = np.bincount(text[1].ravel(), minlength=run.num_tokens)
    pairs = NamedPairs.of(table, np.flatnonzero(count_V >= config.min_positions))
    if not pairs.named_SW.any():
        return with_tables(found, untested(table, count_V), NULLS.empty_table().to_pandas())
    mixed_NT = words_in_random_order(text[1], config.seed)
    half_N = np.random.default_rng(config.seed).permutation(len(text[1])) % 2 == 0
    trained, mixed = changes_of(
        run, run.parted(), text, [text[1], mixed_NT], pairs, stage(report, 0, 2), sweep
    )
    halves = [datums_alone(text[1], own_N, run.num_tokens) for own_N in (half_N, ~half_N)]
    initial, mixed_before, one_half, other_half = changes_of(
        run, run.parted(0), text, [text[1], mixed_NT, *halves], pairs, stage(report, 1, 2), sweep
    )
    named_SW, exchanged_SW = pairs.named_SW, pairs.exchanged(config.seed)
    judge = partial(Verdicts.of, family_S=pairs.family_S, max_q=config.max_q)
    verdicts = {
        RECORD: judge(trained, initial, named_SW),
        UNTRAINED: judge(one_half, other_half, named_SW),
        SHUFFLED: judge(mixed, mixed_before, named_SW),
        EXCHANGED: judge(trained, initial, exchanged_SW, apart_SW=named_SW),
    }
    rows = confirmed_rows(table, found.windows, pairs, trained, initial, verdicts[RECORD], count_V)
    return with_tables(found, rows, null_rows(verdicts))


def require_confirmable(run: Run, level: Level) -> None:
    """Raise what ``confirm`` raises for the run's model, its text, or the level, before any work.

    Level *parameter* is confirmed for the neurons that parameters are pooled to.
    """
    if level == "unit":
        raise ConfigError("--confirm", "cannot ablate whole units", "Choose another --level")
    if obstacle := obstacle_to_confirmation(run):
        raise obstacle
    run.parted(0)


# --- measuring ------------------------------------------------------------------------------------


def held_out_text(run: Run, config: ConfirmConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens and targets of the held-out datums, both [N, T]; raises ``RunError``."""
    if obstacle := obstacle_to_confirmation(run):
        raise obstacle
    token_NT, target_NT = split_texts(run, held_out_splits(run))
    rng = np.random.default_rng(config.seed)
    drawn_N = np.sort(rng.permutation(len(token_NT))[: config.max_datums])
    return token_NT[drawn_N], target_NT[drawn_N]


def words_in_random_order(target_NT: np.ndarray, seed: int) -> np.ndarray:
    """Return the targets permuted over all positions, [N, T]."""
    mixed = np.random.default_rng(seed).permutation(target_NT.ravel())
    return mixed.reshape(target_NT.shape)


def datums_alone(target_NT: np.ndarray, own_N: np.ndarray, num_tokens: int) -> np.ndarray:
    """Return the targets of some datums; all others get the label ``num_tokens``, [N, T]."""
    return np.where(own_N[:, None], target_NT, num_tokens)


def changes_of(
    run: Run,
    model: KnownModel,
    text: tuple[np.ndarray, np.ndarray],
    labels: list[np.ndarray],
    pairs: NamedPairs,
    report: Report | None,
    sweep: Sweep,
) -> list[Changes]:
    """Ablate every neuron on a text; return the changes at the tested tokens, by each labelling.

    Positions with the label ``run.num_tokens``, which is no token, do not count.
    """
    plan, token_W = AblationPlan.of(model, text[0], pairs.subjects, "zero", text[0]), pairs.token_W
    found = changes_by_label(model, *text, plan, labels, run.num_tokens + 1, report, sweep)
    return [
        Changes.of_sums(each.change_SV[:, :-1], each.square_SV[:, :-1], each.count_V[:-1], token_W)
        for each in found
    ]


def stage(report: Report | None, number: int, of: int) -> Report | None:
    """Return a report of one of several stages of equal length, as part of the whole."""
    if report is None:
        return None
    return lambda done, total: report(number * total + done, of * total)


def with_tables(found: Attribution, rows: pd.DataFrame, nulls: pd.DataFrame) -> Attribution:
    return replace(
        found,
        confirmed=concat_frames([rows], CONFIRMED),
        nulls=concat_frames([nulls], NULLS),
    )
