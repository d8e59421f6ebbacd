"""Evidence from tallies, which cover every position, as ``TokenEvidence`` and ``TokenDetails``.

The weight of a token is its update norm summed over the windows of training, its ablation estimate
summed over them, or √(update norm · |ablation estimate|) of the two sums. The last is not a sum, so
its values in single windows do not add up to the weight. A negative ablation estimate (the neuron
harms the token) counts as weight 0. In single windows, *strengthened* adds up the positive ablation
estimates and *weakened* the negative ones; their difference is the estimate over all windows.

For the effective number of observations of a neuron, all c_v positions of token v are taken to
weigh the same. Kish's number is then (Σ w_v)² / Σ (w_v² / c_v). It is divided by the number of
epochs, because every epoch reads the same text.

Shapes: V token of the vocabulary, I neuron of a unit, G neuron of all units, F unit, J chosen
(group, token), W window of training, S distinct chosen token.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from analysis.attribution.config import AttributionConfig
from analysis.attribution.row_passes import chosen_steps
from analysis.attribution.token_evidence import TokenDetails, TokenEvidence, expected_by_window
from analysis.levels import Groups, groups_at
from analysis.lifetime.run import read_tally
from analysis.run.run import Run
from analysis.run.tallies import UnitTally, tally_units, tally_windows
from capture.errors import RunError
from capture.shifts.tallies import By


@dataclass(frozen=True, eq=False)
class TallyEvidence:
    """The tallies that an attribution covers; its groups are all neurons of the run."""

    run: Run
    config: AttributionConfig
    groups: Groups

    @classmethod
    def of(cls, run: Run, config: AttributionConfig) -> "TallyEvidence":
        """Raise ``RunError`` if the run has no tallies of the configured steps."""
        run.require_shards("outliers")
        tally_units(run)
        found = cls(run, config, groups_at("neuron", run.layout, heads=1))
        assert len(found.windows)
        return found

    @property
    def by(self) -> By:
        return "input" if self.config.evidence.startswith("input-") else "target"

    @property
    def signed(self) -> bool:
        """Whether a token's value can be negative (the neuron harms it)."""
        return self.config.evidence in ("ablation-estimate", "input-ablation-estimate")

    @cached_property
    def windows(self) -> pd.DataFrame:
        """window, first_step, end_step of the windows within the configured steps.

        Raises ``RunError`` if no window lies within them.
        """
        windows, steps = tally_windows(self.run), chosen_steps(self.run, self.config)
        within = (windows["first_step"] >= steps.start) & (windows["end_step"] <= steps.stop)
        if not within.any():
            spans = ", ".join(f"{w.first_step}:{w.end_step}" for w in windows.itertuples())
            asked = f"{steps.start}:{steps.stop}"
            problem = f"has tallies of steps {spans}; none of these windows lies within {asked}"
            raise RunError(self.run.uri, problem)
        return windows[within].reset_index(drop=True)

    def units(self) -> Iterator[tuple[str, slice]]:
        """Yield each unit that has tallies and neurons, with the slice of its groups."""
        names = np.array(self.groups.units, object)
        for unit in tally_units(self.run):
            own_G = np.flatnonzero(names == unit)
            if len(own_G):
                yield unit, slice(own_G[0], own_G[-1] + 1)

    def read(self, windows: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return values summed over windows, float32 [G, V], and positions by token, int64 [V].

        Ablation estimates may be negative here.
        """
        value_GV = np.zeros((self.groups.num_named, self.run.num_tokens), np.float32)
        count_V = np.zeros(self.run.num_tokens, np.int64)
        for unit, own in self.units():
            tally = read_tally(self.run, unit, self.by, windows)
            value_GV[own] = self.weight_VI(tally).T
            count_V = tally.count_V
        return value_GV, count_V

    def weight_VI(self, tally: UnitTally) -> np.ndarray:
        """Return the configured value of each token and neuron, [V, I]."""
        if self.config.evidence == "geometric-mean":
            return np.sqrt(tally.update_norm_VI * np.abs(tally.ablation_estimate_VI))
        return tally.ablation_estimate_VI if self.signed else tally.update_norm_VI

    @cached_property
    def whole(self) -> tuple[np.ndarray, np.ndarray]:
        """Weight by neuron and token, at least 0, float32 [G, V]; positions by token, int64 [V]."""
        value_GV, count_V = self.read(self.windows["window"].tolist())
        return np.maximum(value_GV, 0), count_V

    @property
    def epochs(self) -> float:
        """Number of times that the windows go through the text, at least 1."""
        steps = (self.windows["end_step"] - self.windows["first_step"]).sum()
        return max(1.0, steps * self.run.config.training.epochs / self.run.num_steps)

    def evidence(self) -> TokenEvidence:
        """Return the evidence of all neurons."""
        weight_GV, count_V = self.whole
        family_G, num_families = self.groups.family_G, self.groups.num_families
        families = [weight_GV[family_G == f].sum(0, dtype=np.float64) for f in range(num_families)]
        return TokenEvidence(
            weight_G=weight_GV.sum(1, dtype=np.float64),
            family_G=family_G,
            sample=lambda first, end: weight_GV[first:end].astype(np.float64),
            origins=lambda first, end: np.tile(count_V / self.epochs, (end - first, 1)),
            family_FV=np.stack(families),
            train_V=count_V,
            effective_G=effective_positions(weight_GV, count_V) / self.epochs,
            counts_G=np.full(len(weight_GV), float(count_V.sum())),
        )

    def details(self, chosen: pd.DataFrame) -> TokenDetails:
        """Return details of the chosen (group, token_id)."""
        group_J, token_J = chosen["group"].to_numpy(), chosen["token_id"].to_numpy()
        count_V = self.whole[1]
        found = [self.window_values(window, group_J, token_J) for window in self.windows["window"]]
        weight_WJ, against_WJ, expected_WJ = (np.stack(rows) for rows in zip(*found, strict=True))
        unknown_J = np.full(len(chosen), np.nan)
        return TokenDetails(
            count_J=count_V[token_J].astype(np.float64),
            up_J=unknown_J,
            down_J=unknown_J,
            strengthened_J=weight_WJ.sum(0) if self.signed else unknown_J,
            weakened_J=against_WJ.sum(0) if self.signed else unknown_J,
            weight_WJ=weight_WJ,
            expected_WJ=expected_WJ,
            first_steps=self.windows["first_step"].to_numpy(),
            end_steps=self.windows["end_step"].to_numpy(),
        )

    def window_values(
        self, window: int, group_J: np.ndarray, token_J: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return positive part, negative part and expected weight of each (group, token)."""
        value_GV, count_V = self.read([window])
        value_J = value_GV[group_J, token_J].astype(np.float64)
        weight_GV = np.maximum(value_GV, 0, out=value_GV)
        group_G = weight_GV.sum(1, dtype=np.float64)
        if self.config.background == "train":
            expected_J = group_G[group_J] * (count_V[token_J] / count_V.sum())
            return np.maximum(value_J, 0), np.maximum(-value_J, 0), expected_J
        token_S, column_J = np.unique(token_J, return_inverse=True)
        family_G, F = self.groups.family_G, self.groups.num_families
        family_FS = np.stack(
            [weight_GV[family_G == f][:, token_S].sum(0, dtype=np.float64) for f in range(F)]
        )
        family_J = family_G[group_J]
        expected_J = expected_by_window(
            np.maximum(value_J, 0),
            group_G[group_J],
            family_FS[family_J, column_J],
            np.bincount(family_G, group_G, F)[family_J],
        )
        return np.maximum(value_J, 0), np.maximum(-value_J, 0), expected_J


def effective_positions(weight_GV: np.ndarray, count_V: np.ndarray) -> np.ndarray:
    """Return Kish's effective number of positions behind each neuron's weights, [G]."""
    inverse_V = np.divide(1.0, count_V, out=np.zeros(len(count_V)), where=count_V > 0)
    total_G = weight_GV.sum(1, dtype=np.float64)
    squares_G = np.array([(row_V.astype(np.float64) ** 2) @ inverse_V for row_V in weight_GV])
    return np.divide(total_G**2, squares_G, out=np.zeros(len(total_G)), where=squares_G > 0)
