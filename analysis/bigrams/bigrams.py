"""Find how training changed the bigram logits, over a range or step by step, and by which datums.

The study's appendix proposes to store the embedding and the unembedding at every step. Here steps
are replayed from the run's checkpoints instead. For a range, only the weights at its two ends are
needed; the contributions of datums need a replay of all its steps, with the factors of these two
weights.

Shapes: N datum, K bigram.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analysis.bigrams.datums import Contributions, find_contributions
from analysis.bigrams.layers import EmbeddingNames, EmbeddingPair, find_embeddings
from analysis.bigrams.shifts import BigramShifts, largest_shifts
from analysis.bigrams.tables import BIGRAMS, DATUMS, JOB, TABLES
from analysis.jobs.question import Question
from analysis.jobs.tables import concat_frames, table_set, write_tables
from analysis.run.names import token_id
from analysis.run.run import Run
from capture.errors import AuditError, RunError, at_least, at_most
from capture.optim.update import BFLOAT16_ROUNDING

if TYPE_CHECKING:
    from capture.replay.steps import StepReplayer, Update

MAX_BIGRAMS = 1000
"""Bigrams at most: over a range, the contribution of every datum to each is held in memory."""
ProgressReport = Callable[[int, int], None]
"""Called after every replayed step with the number of steps done and of all."""


@dataclass(frozen=True, kw_only=True)
class BigramConfig:
    """Which steps, bigrams and datums to report."""

    first_step: int = 0
    end_step: int | None = None
    """The step after the last one; None: all committed steps."""
    each_step: bool = False
    """Report the largest shifts of every step, instead of those over the whole range."""
    token: str | None = None
    """Only bigrams with this token on either side."""
    top: int = 20
    """Number of bigrams; with ``each_step``, of each step."""
    datums: int = 5
    """Number of datums per bigram. 0 skips contributions; a range then needs no second replay."""

    def __post_init__(self) -> None:
        at_least("bigrams.top", self.top, 1)
        at_most("bigrams.top", self.top, MAX_BIGRAMS)
        at_least("bigrams.datums", self.datums, 0)


@dataclass(frozen=True, eq=False)
class BigramTables:
    """The result of ``find_bigrams``."""

    bigrams: pd.DataFrame
    """``BIGRAMS``"""
    datums: pd.DataFrame
    """``DATUMS``"""


def find_bigrams(
    run: Run, config: BigramConfig, report: ProgressReport | None = None
) -> BigramTables:
    """Find the largest shifts of bigram logits and the datums behind them.

    Raises ``RunError`` if steps are not committed or weights are not finite, ``ConfigError`` for an
    unknown token, ``AuditError`` if the contributions of a step do not add up to its shifts.
    """
    run.require_shards("steps")
    search = BigramSearch(run, config, report or (lambda done, total: None))
    found = list(search.of_each_step() if config.each_step else search.of_range())
    return BigramTables(
        concat_frames([bigrams for bigrams, _ in found], BIGRAMS),
        concat_frames([datums for _, datums in found], DATUMS),
    )


def write_bigrams(
    run: Run, found: BigramTables, question: Question | None = None, name: str = ""
) -> None:
    """Write the tables to ``run.tables``, as the set with this name."""
    write_tables(run, table_set(JOB, name), vars(found), TABLES, question)


def require_token(run: Run, config: BigramConfig) -> int | None:
    """Return the id of the first token that is asked for; ``ConfigError`` if the run lacks it."""
    return None if config.token is None else token_id(run.tokens, config.token)


class BigramSearch:
    """Answers one ``BigramConfig`` for one run."""

    def __init__(self, run: Run, config: BigramConfig, report: ProgressReport) -> None:
        self.run = run
        self.config = config
        self.steps = wanted_steps(run, config)
        self.token = require_token(run, config)
        self.report = report
        self.done = 0

    @cached_property
    def replayer(self) -> "StepReplayer":
        # Imported here because it loads the training engine.
        from capture.replay.segments import read_replayable_run
        from capture.replay.steps import StepReplayer

        return StepReplayer(
            read_replayable_run(self.run.store), [self.run.start, *self.run.segments]
        )

    @cached_property
    def layers(self) -> EmbeddingNames:
        return find_embeddings(self.run.blank_model())

    @cached_property
    def total(self) -> int:
        """Number of steps to replay."""
        whole = self.replayer.num_steps(self.steps)
        if self.config.each_step:
            return whole
        ends = [self.replayer.num_steps(range(end, end)) for end in self.ends]
        return sum(ends) + (whole if self.config.datums else 0)

    @property
    def ends(self) -> tuple[int, int]:
        return self.steps.start, self.steps.stop

    def report_step(self) -> None:
        self.done += 1
        self.report(self.done, self.total)

    def of_range(self) -> Iterator[tuple[pd.DataFrame, pd.DataFrame]]:
        """Yield both tables for the shifts over the whole range."""
        before, after = (
            self.replayer.weights_after(end, self.layers.units, self.report_step)
            for end in self.ends
        )
        pairs = EmbeddingPair.of(before, self.layers), EmbeddingPair.of(after, self.layers)
        bigrams = self.largest(*pairs, self.steps.stop - 1)
        sums = None
        if self.config.datums and len(bigrams):
            sums = ContributionSums(
                np.arange(self.run.num_datums),
                np.zeros((len(bigrams), self.run.num_datums)),
                np.zeros(len(bigrams)),
            )
            for update in self.updates():
                found = self.contributions(update, bigrams)
                sums.datum_KN[:, update.datum_N] += found.datum_KN.cpu().numpy()
                sums.carry_K[:] += found.carry_K.cpu().numpy()
        yield self.rows(self.steps, bigrams, sums)

    def of_each_step(self) -> Iterator[tuple[pd.DataFrame, pd.DataFrame]]:
        """Yield both tables for each step."""
        for update in self.updates():
            before, after = (
                EmbeddingPair.of(weights, self.layers) for weights in (update.before, update.after)
            )
            bigrams, sums = self.largest(before, after, update.step), None
            if self.config.datums and len(bigrams):
                found = self.contributions(update, bigrams)
                sums = ContributionSums(
                    np.array(update.datum_N),
                    found.datum_KN.cpu().numpy(),
                    found.carry_K.cpu().numpy(),
                )
            yield self.rows(range(update.step, update.step + 1), bigrams, sums)

    def updates(self) -> Iterator["Update"]:
        return self.replayer.updates(self.steps, self.layers.units, self.report_step)

    def largest(self, before: EmbeddingPair, after: EmbeddingPair, step: int) -> BigramShifts:
        """The largest shifts. Raises ``RunError`` if the weights after this step are not finite."""
        for weight_VD in (after.embedding_VD, after.unembedding_VD):
            if not bool(weight_VD.isfinite().all()):
                problem = f"has diverged: its weights after step {step} are not finite"
                raise RunError(self.run.uri, problem, "Ask for earlier steps")
        return largest_shifts(before, after, self.config.top, self.token)

    def contributions(self, update: "Update", bigrams: BigramShifts) -> Contributions:
        """Contributions to the step's shifts of these bigrams, audited (``AuditError``)."""
        device = update.after[self.layers.embedding].device
        next_K, token_K = (
            torch.from_numpy(ids_K).to(device) for ids_K in (bigrams.next_K, bigrams.token_K)
        )
        config = self.run.config
        rounding = BFLOAT16_ROUNDING if config.training.precision == "bfloat16" else 0
        tolerance = max(config.capture.audit_tolerance, rounding)
        found = find_contributions(update, self.layers, next_K, token_K, tolerance)
        require_conservation(found, update.step)
        return found

    def rows(
        self, steps: range, bigrams: BigramShifts, sums: "ContributionSums | None"
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return the tables ``BIGRAMS`` and ``DATUMS`` of these steps."""
        names = np.array(self.run.tokens, dtype=object)
        step_columns = {"first_step": steps.start, "end_step": steps.stop}
        carry = missed = np.nan
        datums = DATUMS.empty_table().to_pandas()
        if sums is not None:
            carry = sums.carry_K
            missed = bigrams.shift_K - sums.datum_KN.sum(1) - carry
            datums = sums.table(bigrams.shift_K, self.config.datums)
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
        return pd.DataFrame(shifts | step_columns), datums.assign(**step_columns)


@dataclass(frozen=True, eq=False)
class ContributionSums:
    """Contributions to the shifts of some bigrams, summed over steps, float64."""

    datum_N: np.ndarray
    """Ids of the datums."""
    datum_KN: np.ndarray
    """Contribution of each datum."""
    carry_K: np.ndarray
    """Contribution of momentum and weight decay."""

    def table(self, shift_K: np.ndarray, max_datums: int) -> pd.DataFrame:
        """The datums with the largest contributions to each bigram; zeros are left out."""
        order_KN = np.argsort(-np.abs(self.datum_KN), kind="stable")[:, :max_datums]
        largest_KN = np.take_along_axis(self.datum_KN, order_KN, 1)
        rank_M, column_M = largest_KN.nonzero()
        contribution_M = largest_KN[rank_M, column_M]
        return pd.DataFrame(
            {
                "rank": rank_M,
                "datum": self.datum_N[order_KN[rank_M, column_M]],
                "contribution": contribution_M,
                "share": contribution_M / shift_K[rank_M],
            }
        )


def require_conservation(found: Contributions, step: int) -> None:
    """Raise ``AuditError`` if contributions and carry do not add up to the shifts (law 1)."""
    missed_K: Tensor = found.missed_K.abs()
    # Written so that NaN fails: it compares as False.
    if not bool((missed_K <= found.allowed_K).all()):
        worst = float((missed_K - found.allowed_K).max())
        problem = f"contributions miss the shift of a bigram's logit by {worst:.1e} too much"
        raise AuditError(f"step {step}", problem, "Nothing was written")


def wanted_steps(run: Run, config: BigramConfig) -> range:
    """The range of steps. Raises ``RunError`` if a step is not committed."""
    end = run.steps_done if config.end_step is None else config.end_step
    if not 0 <= config.first_step < end <= run.steps_done:
        problem = f"has steps 0:{run.steps_done}, which do not contain {config.first_step}:{end}"
        raise RunError(run.uri, problem, "Give steps FIRST:END; END is excluded")
    return range(config.first_step, end)
