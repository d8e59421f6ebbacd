"""The passes over a run's outlier rows that an attribution needs.

Shapes: R parameter by rank, G group.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd

from analysis.attribution.collect import Collected, CollectEvidence, CountRows
from analysis.attribution.config import AttributionConfig
from analysis.attribution.outlier_notions import find_outlier_filter
from analysis.attribution.outlier_weights import RowReader, RowWeighting
from analysis.attribution.start_weights import StartWeights
from analysis.attribution.strongest_rows import GroupDatumPairs
from analysis.attribution.token_history import HistoryAndStrongest, TokenHistoryJob
from analysis.jobs.job import Runner
from analysis.levels import NO_BLOCKS, Groups, groups_at, is_weight, parameters_at
from analysis.run.datums.recorded_steps import recorded_datums
from analysis.run.run import Run
from analysis.run.scan import Shard
from capture.errors import ConfigError, RunError


def tokens_at(run: Run, config: AttributionConfig) -> np.ndarray:
    """Return the token that a row at a datum's position is evidence for, [N, T].

    With one position it is the label of an image, [N, 1]. Raises ``ConfigError`` for the input of a
    perceptron, which is no single token.
    """
    if run.has_one_position and config.evidence == "input":
        problem = "got input, but a perceptron reads all pixels of an image at once"
        raise ConfigError("attribute.evidence", problem, "Take target, or a tally")
    return run.recorded_target_NT if config.evidence == "target" else run.token_NT


@dataclass(frozen=True, eq=False)
class OutlierRows:
    """The outlier rows that an attribution covers, and the jobs that read them."""

    run: Run
    run_job: Runner
    config: AttributionConfig
    steps: range
    shards: list[Shard]
    reader: RowReader

    @classmethod
    def of(cls, run: Run, run_job: Runner, config: AttributionConfig) -> "OutlierRows":
        """Find the rows that count; raise ``RunError`` if the run lacks the steps."""
        run.require_shards("outliers")
        steps = chosen_steps(run, config)
        shards = run.shards("outliers", steps)
        if not shards:
            run.committed.require_steps("outliers", steps)
        some = None if steps == range(run.steps_done) else steps
        window = tokens_at(run, config).shape[1]
        reader = RowReader(run.layout, run.num_datums, window, steps=some, length_N=run.length_N)
        chosen = find_outlier_filter(run_job, shards, reader, config.outliers, config.keep)
        return cls(run, run_job, config, steps, shards, replace(reader, outlier_filter=chosen))

    @cached_property
    def weights(self) -> StartWeights:
        first_steps = tuple(segment.first_step for segment in self.run.segments)
        return StartWeights(self.run.store, self.run.layout, first_steps)

    @cached_property
    def weighting(self) -> RowWeighting:
        return RowWeighting(self.config.weight, self.weights)

    @property
    def whole_windows(self) -> bool:
        return self.config.evidence == "window"

    @cached_property
    def token_NT(self) -> np.ndarray:
        """The token that a row at a datum's position is evidence for, [N, T]."""
        return tokens_at(self.run, self.config)

    @cached_property
    def is_token_V(self) -> np.ndarray:
        """Whether each token of the vocabulary is one, not padding, bool [V]."""
        is_token_V = np.ones(self.run.num_tokens, bool)
        if self.reader.length_N is not None:
            is_token_V[-1] = False
        return is_token_V

    @property
    def every_datum_counts(self) -> bool:
        """Whether every datum of every step is certain to have rows that count."""
        each_datum = self.run.config.capture.outliers.scope != "step"
        return each_datum and self.reader.outlier_filter is None

    def datums_with_rows(self, rows_N: np.ndarray) -> np.ndarray:
        """Return the datums that have rows that count, ascending.

        ``rows_N`` is the number of rows read of each datum. It may leave out units that are not
        asked about, so where every datum is certain to have rows, the steps tell which they are.
        """
        if not self.every_datum_counts:
            return np.flatnonzero(rows_N)
        return np.unique(recorded_datums(self.run, "outliers", self.steps))

    def reader_for(self, groups: Groups) -> RowReader:
        """Return a reader that skips units without any of the groups."""
        offsets = self.run.layout.offsets[:-1]
        has_U = np.maximum.reduceat(groups.group_P, offsets) >= 0
        units = tuple(name for name, has in zip(self.run.layout.names, has_U, strict=True) if has)
        return replace(self.reader, units=units)

    @property
    def window_steps(self) -> np.ndarray:
        """First step of each window of training, and the end of the last window."""
        number = min(self.config.windows, len(self.steps))
        return self.steps.start + np.arange(number + 1) * len(self.steps) // number

    # --- the passes -------------------------------------------------------------------------------

    def groups(self) -> Groups:
        """Return the groups of the configured level; raise ``RunError`` if the run has none."""
        if self.config.level != "parameter":
            of_heads = self.config.level == "head"
            how = {"heads": self.run.num_heads}
            blocks = self.run.head_blocks if of_heads else NO_BLOCKS
            return groups_at(self.config.level, self.run.layout, **how, blocks=blocks)
        rows_P = self.run_job(CountRows(self.reader), self.shards) * is_weight(self.run.layout)
        place_R = np.argsort(-rows_P, kind="stable")[: self.config.max_parameters]
        place_R = place_R[rows_P[place_R] > 0]
        if not len(place_R):
            problem = "has no outliers of weights (units with two axes)"
            raise RunError(self.run.uri, problem, "Capture some with capture.units")
        return parameters_at(place_R, self.run.layout)

    def collect(self, groups: Groups, *, tokens: bool) -> Collected:
        """Sum evidence by group and datum; with ``tokens`` also by token, unless it is windows."""
        token_NT = self.token_NT if tokens and not self.whole_windows else None
        reader = self.reader_for(groups) if self.every_datum_counts else self.reader
        job = CollectEvidence(reader, groups, self.weighting, token_NT, self.run.num_tokens)
        return self.run_job(job, self.shards)

    def history(
        self, groups: Groups, chosen: pd.DataFrame, pairs: GroupDatumPairs, pool_G: np.ndarray
    ) -> HistoryAndStrongest:
        """Sum the chosen (group, token_id) by window and sign; find the strongest row of each pair.

        ``pool_G`` is the group that ``pairs`` uses for each group, -1 for none.
        """
        job = TokenHistoryJob(
            reader=self.reader_for(groups),
            groups=groups,
            weighting=self.weighting,
            weights=self.weights,
            token_NT=self.token_NT,
            whole_windows=self.whole_windows,
            group_J=chosen["group"].to_numpy(),
            token_J=chosen["token_id"].to_numpy(),
            num_tokens=self.run.num_tokens,
            first_steps=self.window_steps[:-1],
            pairs=pairs,
            pair_group_P=np.append(pool_G, -1)[groups.group_P],
        )
        return self.run_job(job, self.shards)


def chosen_steps(run: Run, config: AttributionConfig) -> range:
    """Return the configured steps; raise ``RunError`` if the run lacks any of them."""
    end = run.steps_done if config.end_step is None else config.end_step
    if config.first_step >= run.steps_done or end > run.steps_done:
        problem = f"has steps 0 to {run.steps_done - 1}, asked for {config.first_step} to {end - 1}"
        raise RunError(run.uri, problem, f"Steps are chosen as in 0:{run.steps_done}")
    return range(config.first_step, end)
