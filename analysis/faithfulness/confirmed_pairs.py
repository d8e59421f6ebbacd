"""Pairs that confirmation tests, what is confirmed of them, and their tables.

Shapes: S neuron, V token of the vocabulary, W token with enough positions, J pair.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.ablation.subjects import Subject
from analysis.attribution.tables import CONFIRMED
from analysis.measures.agreement import NEARLY_DEAD_NATS
from analysis.measures.confirmation import Changes, confirmation_p, confirmation_q, not_new_p
from analysis.measures.shares import wilson

KEYS = ["level", "unit", "group"]
MAX_OLD_P = 0.01
"""Largest p of the hypothesis that an effect is not new, for each pair by itself. The pairs have
large effects, some of them by chance, so that more than this share of old effects would pass."""
MIN_EFFECT_NATS = 0.01
"""Smallest change of log p that is confirmed: the token's probability changes by 1 %."""


@dataclass(frozen=True, eq=False)
class NamedPairs:
    """The neurons to ablate, and which tokens with enough positions are named for each."""

    subjects: list[Subject]
    family_S: np.ndarray
    """Number of each neuron's unit."""
    token_W: np.ndarray
    named_SW: np.ndarray

    @classmethod
    def of(cls, table: pd.DataFrame, token_W: np.ndarray) -> "NamedPairs":
        """Read the pairs from rows of ``TOKENS``."""
        keys = table[KEYS].drop_duplicates()
        subjects = [Subject(unit, int(group), level) for level, unit, group in keys.to_numpy()]
        number = {subject: s for s, subject in enumerate(subjects)}
        named_SW = np.zeros((len(subjects), len(token_W)), bool)
        column = np.searchsorted(token_W, table["token_id"].to_numpy())
        known = np.isin(table["token_id"].to_numpy(), token_W)
        rows = [number[Subject(u, int(g), v)] for v, u, g in table[KEYS].to_numpy()]
        named_SW[np.array(rows, int)[known], column[known]] = True
        family_S = pd.factorize(keys["unit"])[0]
        return cls(subjects, family_S, token_W, named_SW)

    def exchanged(self, seed: int) -> np.ndarray:
        """Return the names of another neuron of the unit for each, less those that both have."""
        rng = np.random.default_rng(seed)
        taken_SW = np.zeros_like(self.named_SW)
        for family in np.unique(self.family_S):
            ring = rng.permutation(np.flatnonzero(self.family_S == family))
            taken_SW[ring] = self.named_SW[np.roll(ring, 1)]
        return taken_SW & ~self.named_SW


@dataclass(frozen=True, eq=False)
class Verdicts:
    """What is confirmed of the pairs of one case. Shapes as in ``NamedPairs``."""

    named_SW: np.ndarray
    p_SW: np.ndarray
    q_SW: np.ndarray
    confirmed_SW: np.ndarray

    @classmethod
    def of(
        cls,
        changes: Changes,
        initial: Changes,
        named_SW: np.ndarray,
        family_S: np.ndarray,
        max_q: float,
        apart_SW: np.ndarray | None = None,
    ) -> "Verdicts":
        """Test named pairs against all others, less ``apart_SW``, which are no reference either.

        ``initial``: the changes in the initial weights.
        """
        apart_SW = named_SW if apart_SW is None else named_SW | apart_SW
        p_SW = confirmation_p(changes, apart_SW, family_S)
        q_SW = confirmation_q(p_SW, named_SW)
        confirmed_SW = named_SW & (q_SW <= max_q) & (np.abs(changes.mean_SW) >= MIN_EFFECT_NATS)
        confirmed_SW &= (changes.rms_S >= NEARLY_DEAD_NATS)[:, None]
        confirmed_SW &= not_new_p(changes, initial) <= MAX_OLD_P
        return cls(named_SW, p_SW, q_SW, confirmed_SW)


# --- tables ---------------------------------------------------------------------------------------


def confirmed_rows(
    table: pd.DataFrame,
    windows: pd.DataFrame,
    pairs: NamedPairs,
    changes: Changes,
    initial: Changes,
    verdicts: Verdicts,
    count_V: np.ndarray,
) -> pd.DataFrame:
    """Return ``CONFIRMED``: one row for every row of ``table``, tested or not."""
    low_SW, high_SW = changes.intervals()
    row_J, column_J = np.nonzero(pairs.named_SW)
    subjects = [pairs.subjects[s] for s in row_J]
    tested = pd.DataFrame(
        {
            "level": [subject.level for subject in subjects],
            "unit": [subject.unit for subject in subjects],
            "group": [subject.group for subject in subjects],
            "token_id": pairs.token_W[column_J],
            "change": changes.mean_SW[row_J, column_J],
            "low": low_SW[row_J, column_J],
            "high": high_SW[row_J, column_J],
            "initial_change": initial.mean_SW[row_J, column_J],
            "p": verdicts.p_SW[row_J, column_J],
            "q": verdicts.q_SW[row_J, column_J],
            "confirmed": verdicts.confirmed_SW[row_J, column_J],
        }
    )
    rms = pd.DataFrame(
        [vars(s) for s in pairs.subjects], columns=["unit", "group", "level"]
    ).assign(rms_change=changes.rms_S, alive=changes.rms_S >= NEARLY_DEAD_NATS)
    rows = untested(table, count_V).drop(columns=[*tested.columns[4:], "rms_change", "alive"])
    rows = rows.merge(tested, "left", [*KEYS, "token_id"]).merge(rms, "left", KEYS)
    rows["confirmed"] = rows["confirmed"].eq(True)
    return rows.drop(columns=["first_step", "end_step"]).merge(
        strongest_windows(windows), "left", [*KEYS, "token_id"]
    )


def had_already(confirmed: pd.DataFrame) -> int:
    """Return how many pairs of ``CONFIRMED`` have an effect that the initial weights had too.

    These have a change that differs from zero (95 %) and is no larger than the initial one.
    """
    change, sign = confirmed["change"], np.sign(confirmed["change"])
    moves = (confirmed["low"] > 0) | (confirmed["high"] < 0)
    old = sign * confirmed["initial_change"] >= change.abs()
    return int((moves & old & (change.abs() >= MIN_EFFECT_NATS)).sum())


def untested(table: pd.DataFrame, count_V: np.ndarray) -> pd.DataFrame:
    """Return ``CONFIRMED`` without any result."""
    rows = table[[*KEYS, "rank", "token_id", "token"]].reset_index(drop=True)
    numbers = {field.name: np.nan for field in CONFIRMED if field.name not in rows}
    rows = rows.assign(**numbers)
    return rows.assign(
        positions=count_V[rows["token_id"].to_numpy(np.int64)],
        confirmed=False,
        alive=None,
    )


def strongest_windows(windows: pd.DataFrame) -> pd.DataFrame:
    """Return the window with the most evidence of each group and token."""
    keys = [*KEYS, "token_id"]
    ordered = windows.sort_values("weight", ascending=False, kind="stable")
    return ordered.drop_duplicates(keys)[[*keys, "first_step", "end_step"]]


def null_rows(verdicts: Mapping[str, Verdicts]) -> pd.DataFrame:
    """Return ``NULLS``: how many pairs and neurons are confirmed in each case."""
    rows = []
    for case, found in verdicts.items():
        neurons = int(found.named_SW.any(1).sum())
        confirmed = int(found.confirmed_SW.any(1).sum())
        low, high = wilson(confirmed, neurons)
        rows.append(
            {
                "case": case,
                "pairs": int(found.named_SW.sum()),
                "confirmed_pairs": int(found.confirmed_SW.sum()),
                "groups": neurons,
                "confirmed_groups": confirmed,
                "low": float(low),
                "high": float(high),
            }
        )
    return pd.DataFrame(rows)
