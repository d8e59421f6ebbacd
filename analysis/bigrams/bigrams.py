"""How training moved the bigram logits, step by step or over a range, and which datums did it.

The appendix of the study that asked for this would have stored the embedding and the unembedding at
every step. Here steps are taken again from the run's checkpoints instead: over a range only its two
ends are needed; the datums behind it are found by taking its steps once more, with the factors of
these two weights.

Shapes: N datum, K bigram.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analysis.bigrams.datums import Causes, find_causes
from analysis.bigrams.layers import Layers, Pair, find_layers
from analysis.bigrams.shifts import Bigrams, largest_shifts
from analysis.bigrams.tables import BIGRAMS, DATUMS, JOB, TABLES
from analysis.jobs.tables import joined, write_tables
from analysis.run.names import token_id
from analysis.run.run import Run
from capture.errors import AuditError, RunError, at_least, at_most
from capture.optim.update import BFLOAT16_ROUNDING
from capture.replay.segments import read_past
from capture.replay.steps import Retaking, Update

MOST = 1000
"""Bigrams at a time: over a range, contributions of every datum to each are held."""
Report = Callable[[int, int], None]
"""Told after every step: steps taken, steps to take."""


@dataclass(frozen=True, kw_only=True)
class BigramConfig:
    """Which shifts are asked for."""

    first_step: int = 0
    end_step: int | None = None
    """The step after the last; None: all that are committed."""
    each_step: bool = False
    """The largest of every step, instead of those over all the steps."""
    token: str | None = None
    """Only bigrams that have this token on either side."""
    top: int = 20
    """Bigrams, of each step with ``each_step``."""
    datums: int = 5
    """Of each bigram; 0: causes are not looked for, which over a range saves taking its steps."""

    def __post_init__(self) -> None:
        at_least("bigrams.top", self.top, 1)
        at_most("bigrams.top", self.top, MOST)
        at_least("bigrams.datums", self.datums, 0)


@dataclass(frozen=True, eq=False)
class Shifted:
    """What was found."""

    bigrams: pd.DataFrame
    """``BIGRAMS``"""
    datums: pd.DataFrame
    """``DATUMS``"""


def find_bigrams(run: Run, config: BigramConfig, report: Report | None = None) -> Shifted:
    """Raises ``RunError`` for steps that the run lacks, ``ConfigError`` for a token that it lacks,
    ``AuditError`` where the datums of a step do not add up to what it did."""
    run.require_shards("steps")
    search = Search(run, config, report or (lambda done, total: None))
    found = list(search.of_each_step() if config.each_step else search.of_range())
    return Shifted(
        joined([bigrams for bigrams, _ in found], BIGRAMS),
        joined([datums for _, datums in found], DATUMS),
    )


def write_bigrams(run: Run, found: Shifted) -> None:
    write_tables(run, JOB, vars(found), TABLES)


class Search:
    """The way from a question to its rows."""

    def __init__(self, run: Run, config: BigramConfig, report: Report) -> None:
        self.run = run
        self.config = config
        self.steps = wanted_steps(run, config)
        self.token = None if config.token is None else token_id(run.tokens, config.token)
        self.retaking = Retaking(read_past(run.store), [run.start, *run.segments])
        self.report = report
        self.done = 0

    @cached_property
    def layers(self) -> Layers:
        return find_layers(self.run.blank_model())

    @cached_property
    def total(self) -> int:
        """Steps to take."""
        whole = self.retaking.num_steps(self.steps)
        if self.config.each_step:
            return whole
        ends = [self.retaking.num_steps(range(end, end)) for end in self.ends]
        return sum(ends) + (whole if self.config.datums else 0)

    @property
    def ends(self) -> tuple[int, int]:
        return self.steps.start, self.steps.stop

    def tell(self) -> None:
        self.done += 1
        self.report(self.done, self.total)

    def of_range(self) -> Iterator[tuple[pd.DataFrame, pd.DataFrame]]:
        """Rows of the shifts over all the steps."""
        before, after = (
            self.retaking.weights_after(end, self.layers.units, self.tell) for end in self.ends
        )
        pairs = Pair.of(before, self.layers), Pair.of(after, self.layers)
        bigrams = self.largest(*pairs, self.steps.stop - 1)
        behind = None
        if self.config.datums and len(bigrams):
            behind = Behind(
                np.arange(self.run.num_datums),
                np.zeros((len(bigrams), self.run.num_datums)),
                np.zeros(len(bigrams)),
            )
            for update in self.updates():
                causes = self.causes(update, bigrams)
                behind.cause_KN[:, update.datum_N] += causes.datum_KN.cpu().numpy()
                behind.carry_K[:] += causes.carry_K.cpu().numpy()
        yield self.rows(self.steps, bigrams, behind)

    def of_each_step(self) -> Iterator[tuple[pd.DataFrame, pd.DataFrame]]:
        """Rows of the shifts of every single step."""
        for update in self.updates():
            before, after = (Pair.of(w, self.layers) for w in (update.before, update.after))
            bigrams, behind = self.largest(before, after, update.step), None
            if self.config.datums and len(bigrams):
                causes = self.causes(update, bigrams)
                behind = Behind(
                    np.array(update.datum_N),
                    causes.datum_KN.cpu().numpy(),
                    causes.carry_K.cpu().numpy(),
                )
            yield self.rows(range(update.step, update.step + 1), bigrams, behind)

    def updates(self) -> Iterator[Update]:
        return self.retaking.updates(self.steps, self.layers.units, self.tell)

    def largest(self, before: Pair, after: Pair, step: int) -> Bigrams:
        """Raises ``RunError`` if the weights after this step are not all numbers."""
        for weight_VD in (after.embedding_VD, after.unembedding_VD):
            if not bool(weight_VD.isfinite().all()):
                problem = f"has diverged: its weights after step {step} are out of range"
                raise RunError(self.run.uri, problem, "Ask for earlier steps")
        return largest_shifts(before, after, self.config.top, self.token)

    def causes(self, update: Update, bigrams: Bigrams) -> Causes:
        """Whose doing the step's shifts of these bigrams were; raises ``AuditError``."""
        device = update.after[self.layers.embedding].device
        next_K, token_K = (
            torch.from_numpy(ids_K).to(device) for ids_K in (bigrams.next_K, bigrams.token_K)
        )
        config = self.run.config
        rounding = BFLOAT16_ROUNDING if config.training.precision == "bfloat16" else 0
        tolerance = max(config.capture.audit_tolerance, rounding)
        causes = find_causes(update, self.layers, next_K, token_K, tolerance)
        require_whole(causes, update.step)
        return causes

    def rows(
        self, steps: range, bigrams: Bigrams, behind: "Behind | None"
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Of both tables."""
        names = np.array(self.run.tokens, dtype=object)
        about = {"first_step": steps.start, "end_step": steps.stop}
        carry = missed = np.nan
        datums = DATUMS.empty_table().to_pandas()
        if behind is not None:
            carry = behind.carry_K
            missed = bigrams.shift_K - behind.cause_KN.sum(1) - carry
            datums = behind.table(bigrams.shift_K, self.config.datums)
        shifts = {
            "rank": np.arange(len(bigrams)),
            "token_id": bigrams.token_K,
            "token": names[bigrams.token_K],
            "next_id": bigrams.next_K,
            "next": names[bigrams.next_K],
            "shift": bigrams.shift_K,
            "carry": carry,
            "missed": missed,
        }
        return pd.DataFrame(shifts | about), datums.assign(**about)


@dataclass(frozen=True, eq=False)
class Behind:
    """What is behind the shifts of some bigrams, added up over steps."""

    datum_N: np.ndarray
    cause_KN: np.ndarray
    """Contribution of each datum."""
    carry_K: np.ndarray

    def table(self, shift_K: np.ndarray, most: int) -> pd.DataFrame:
        """The datums with the largest contributions to each bigram; who has none is left out."""
        order_KN = np.argsort(-np.abs(self.cause_KN), kind="stable")[:, :most]
        largest_KN = np.take_along_axis(self.cause_KN, order_KN, 1)
        rank_M, place_M = largest_KN.nonzero()
        contribution_M = largest_KN[rank_M, place_M]
        return pd.DataFrame(
            {
                "rank": rank_M,
                "datum": self.datum_N[order_KN[rank_M, place_M]],
                "contribution": contribution_M,
                "share": contribution_M / shift_K[rank_M],
            }
        )


def require_whole(causes: Causes, step: int) -> None:
    """Law 1 for logits: what datums contribute adds up to the shift."""
    missed_K: Tensor = causes.missed_K.abs()
    if not bool((missed_K <= causes.allowed_K).all()):
        worst = float((missed_K - causes.allowed_K).max())
        problem = f"contributions miss the shift of a bigram's logit by {worst:.1e} too much"
        raise AuditError(f"step {step}", problem, "Nothing was written")


def wanted_steps(run: Run, config: BigramConfig) -> range:
    """Raises ``RunError`` for steps that are not committed."""
    end = run.steps_done if config.end_step is None else config.end_step
    if not 0 <= config.first_step < end <= run.steps_done:
        problem = f"has steps 0:{run.steps_done}, of which {config.first_step}:{end} is no part"
        raise RunError(run.uri, problem, "Ask for steps FIRST:END, END not among them")
    return range(config.first_step, end)
