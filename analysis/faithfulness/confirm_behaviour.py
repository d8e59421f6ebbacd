"""Silence what the datums of a behaviour moved, on held-out text, beside what they did not move.

Of each level (heads, neurons), those that the selected datums moved most are silenced one at a
time: set to zero. Others of the level, drawn at random among those whose share of rows is not
significantly different, are their controls. The change of the log-probability of true next tokens
where the text shows the behaviour is compared with the change elsewhere: its *difference* is below
0 where silencing harms the behaviour more than the rest. The p of a level is one-sided, of the
hypothesis that what was moved is no more harmful to silence than the controls (Mann-Whitney).

Shapes: N datum of the held-out text, T position, M position of any (subject, datum) pair.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
from scipy.stats import mannwhitneyu

from analysis.ablation.ablatable import units_of
from analysis.ablation.log_probability import probability_changes
from analysis.ablation.replacement import AblationPlan
from analysis.ablation.subjects import Subject
from analysis.ablation.target_changes import contrast_intervals
from analysis.behaviour.behaviour import CONFIRMATION, CONFIRMED, Behaviour
from analysis.behaviour.predicates import Predicate, matches_regex
from analysis.faithfulness.confirm import ConfirmConfig, Report
from analysis.faithfulness.ground_truth import split_texts
from analysis.jobs.sweep import Sweep, in_turn
from analysis.jobs.tables import concat_frames
from analysis.run.ablatable import held_out_splits, obstacle_to_confirmation
from analysis.run.names import token_id
from analysis.run.run import Run
from capture.errors import ConfigError, RunError
from capture.parts import KnownModel

MOST = 10
"""Largest number of heads, or neurons, that were moved, and of their controls."""
LEAST_DATUMS = 2
"""Held-out datums that must show the behaviour."""


def require_confirmable(run: Run, predicate: Predicate) -> None:
    """Raise what ``confirm_behaviour`` raises for the run or the condition, before any work."""
    if predicate.datums is not None:
        problem = "cannot go with --datums, which are no held-out text"
        raise ConfigError("--confirm", problem, "Name a token or a regular expression")
    if obstacle := obstacle_to_confirmation(run):
        raise obstacle
    run.parted()


def confirm_behaviour(
    run: Run,
    found: Behaviour,
    predicate: Predicate,
    config: ConfirmConfig,
    report: Report | None = None,
    sweep: Sweep = in_turn,
) -> Behaviour:
    """Return the behaviour with ``CONFIRMED`` and ``CONFIRMATION`` filled in.

    ``report`` is called with (subject, datum) pairs done and their total. Raises ``RunError`` if
    the run has no held-out text, or none that shows the behaviour, or a model that cannot be
    ablated; ``ConfigError`` for a condition on ids of datums.
    """
    require_confirmable(run, predicate)
    token_NT, target_NT, shows_NT = held_out(run, predicate, config)
    model = run.parted()
    chosen = chosen_groups(model, found, config)
    if chosen.empty:
        return found
    subjects = [Subject(r.unit, r.group, r.level) for r in chosen.itertuples()]  # pyright: ignore
    plan = AblationPlan.of(model, token_NT, subjects, "zero", token_NT)
    everything = [np.arange(len(token_NT))] * len(subjects)
    change_SN2 = np.zeros((len(subjects), len(token_NT), 2))
    texts = token_NT, target_NT
    for piece in probability_changes(model, *texts, plan, everything, report, sweep):
        elsewhere_M = (~shows_NT[piece.datum_M, piece.position_M]).astype(int)
        np.add.at(change_SN2, (piece.subject_M, piece.datum_M, elsewhere_M), piece.change_M)
    count_N2 = np.stack([shows_NT.sum(1), (~shows_NT).sum(1)], 1).astype(np.float64)
    rows = [effect(part_N2, count_N2) for part_N2 in change_SN2]
    confirmed = pd.concat([chosen.reset_index(drop=True), pd.DataFrame(rows)], axis=1)
    return replace(
        found,
        confirmed=concat_frames([confirmed], CONFIRMED),
        confirmation=concat_frames([pd.DataFrame(by_level(confirmed))], CONFIRMATION),
    )


def held_out(
    run: Run, predicate: Predicate, config: ConfirmConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return tokens and targets of held-out datums, and where they show the behaviour, [N, T]."""
    splits = held_out_splits(run)
    token_NT, target_NT = split_texts(run, splits)
    if predicate.target is not None:
        shows_NT = target_NT == token_id(run.tokens, predicate.target)
    else:
        if predicate.contains is not None:
            shows_N = (token_NT == token_id(run.tokens, predicate.contains)).any(1)
        else:
            texts = [run.datum_table(split)["text"].combine_chunks() for split in splits]
            shows_N = np.concatenate([matches_regex(own, predicate.regex or "") for own in texts])
        shows_NT = np.broadcast_to(shows_N[:, None], target_NT.shape)
    drawn_N = np.random.default_rng(config.seed).permutation(len(token_NT))[: config.max_datums]
    token_NT, target_NT, shows_NT = (x[np.sort(drawn_N)] for x in (token_NT, target_NT, shows_NT))
    for sides, what in ((shows_NT, "show the behaviour"), (~shows_NT, "do not show it")):
        if (number := int(sides.any(1).sum())) < LEAST_DATUMS:
            problem = f"{number} of {len(token_NT)} held-out datums {what}, at least 2 must"
            raise RunError(run.uri, problem, "Hold out more text, or use another condition")
    return token_NT, target_NT, shows_NT


def chosen_groups(model: KnownModel, found: Behaviour, config: ConfirmConfig) -> pd.DataFrame:
    """Return the moved groups of each level, then controls: columns level to q, and moved."""
    rng = np.random.default_rng(config.seed)
    frames = []
    for level, table in (("head", found.heads), ("neuron", found.neurons)):
        known = units_of(model, level)  # pyright: ignore[reportArgumentType]
        own = table[(table["measure"] == "rows") & table["unit"].isin(list(known))]
        moved = own[(own["difference"] > 0) & (own["q"] <= config.max_q)].head(MOST)
        rest = own[~(own["q"] <= config.max_q)]
        drawn = rng.permutation(len(rest))[: MOST if len(moved) else 0]
        frames += [moved.assign(moved=True), rest.iloc[np.sort(drawn)].assign(moved=False)]
    columns = ["level", "unit", "group", "ratio", "q", "moved"]
    return pd.concat(frames)[columns]


def effect(part_N2: np.ndarray, count_N2: np.ndarray) -> dict[str, float]:
    """Return mean changes where the text shows the behaviour and elsewhere, with intervals."""
    change, elsewhere = part_N2.sum(0) / count_N2.sum(0)
    ends = contrast_intervals(part_N2, count_N2)
    return {
        "positions": count_N2[:, 0].sum(),
        "change": change,
        "low": ends["notable_change_low"],
        "high": ends["notable_change_high"],
        "elsewhere": elsewhere,
        "difference": change - elsewhere,
        "difference_low": ends["difference_low"],
        "difference_high": ends["difference_high"],
    }


def by_level(confirmed: pd.DataFrame) -> list[dict[str, object]]:
    """Return the rows of ``CONFIRMATION``."""
    rows = []
    for level, own in confirmed.groupby("level", sort=False):
        moved, rest = (own.loc[own["moved"] == side, "difference"] for side in (True, False))
        tested = len(moved) and len(rest)
        rows.append(
            {
                "level": level,
                "moved": len(moved),
                "controls": len(rest),
                "moved_difference": moved.mean(),
                "control_difference": rest.mean(),
                "p": mannwhitneyu(moved, rest, alternative="less").pvalue if tested else np.nan,
            }
        )
    return rows
