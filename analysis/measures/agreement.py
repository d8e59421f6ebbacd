"""Does ablation agree with attribution? Measured by log-probabilities of the true next tokens.

Ablating a neuron agrees with attribution if it lowers the log-probability of the tokens that
attribution named for it (*notable* tokens) more than that of other tokens. Flips of predictions
cannot tell: most named tokens are rare, and a model hardly ever predicts a rare token.

Every figure comes with n, an interval, and what chance gives. Evidence drawn at random lowers its
tokens more than others for half of the neurons, and 2.5 % of 95 % intervals lie below zero.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.measures.bootstrap import mean_interval
from analysis.measures.shares import wilson

MIN_POSITIONS = 10
"""A neuron with fewer scored positions that have a notable target is not evaluated."""
NEARLY_DEAD_NATS = 0.001
"""A neuron is nearly dead if the root mean square of all changes that it makes is smaller."""


def nearly_dead(neurons: pd.DataFrame) -> pd.Series:
    """Return whether each neuron of ``NEURONS`` hardly changes any prediction; not if unknown."""
    return neurons["rms_change"] < NEARLY_DEAD_NATS


def by_effect(neurons: pd.DataFrame) -> pd.DataFrame:
    """Return ``NEURONS`` with the largest effect (root mean square change) first."""
    return neurons.sort_values("rms_change", ascending=False, kind="stable")


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Agreement over the ablated neurons, rows or heads. Means are NaN if none is evaluated."""

    neurons: int
    scored: int
    """Neurons with log-probabilities."""
    evaluated: int
    """Scored neurons with ``MIN_POSITIONS`` or more positions that have a notable target."""
    dead: int
    """Scored neurons that are nearly dead."""
    notable: float
    """Mean over evaluated neurons of the mean change at notable targets, nats."""
    other: float
    """Mean over evaluated neurons of the mean change at other targets, nats."""
    notable_positions: int
    other_positions: int
    low: float
    """95 % interval of the mean difference (notable - other), over neurons."""
    high: float
    lower: int
    """Evaluated neurons that lower notable targets more than others."""
    clear_below: int
    """Evaluated neurons whose interval of the difference lies below zero."""
    clear_above: int
    """Evaluated neurons whose interval of the difference lies above zero."""
    has_notable: bool = True
    """Whether any scored position has a notable target of any neuron."""

    @classmethod
    def of(cls, neurons: pd.DataFrame) -> "Agreement":
        """Summarise a table ``NEURONS``."""
        own = neurons[neurons["notable_positions"] >= MIN_POSITIONS]
        own = own[own["difference"].notna()]
        low, high = mean_interval(own["difference"].to_numpy(np.float64))
        scored = neurons["rms_change"].notna()
        return cls(
            neurons=len(neurons),
            scored=int(scored.sum()),
            evaluated=len(own),
            dead=int(nearly_dead(neurons).sum()),
            notable=float(own["notable_change"].mean()),
            other=float(own["other_change"].mean()),
            notable_positions=int(own["notable_positions"].sum()),
            other_positions=int(own["other_positions"].sum()),
            low=low,
            high=high,
            lower=int((own["difference"] < 0).sum()),
            clear_below=int((own["difference_high"] < 0).sum()),
            clear_above=int((own["difference_low"] > 0).sum()),
            has_notable=bool(neurons["notable_positions"].any()),
        )

    @property
    def difference(self) -> float:
        return self.notable - self.other

    @property
    def too_few(self) -> int:
        """Scored neurons with too few positions to be evaluated."""
        return self.scored - self.evaluated

    def sentences(self, nouns: str) -> list[str]:
        """Return the summary as lines of text, for neurons, rows or heads."""
        found = []
        if not self.scored:
            return ["No log-probabilities were computed (--scored-datums 0): nothing is evaluated."]
        if self.evaluated:
            found += [self.mean_line(nouns), self.share_line(nouns)]
        if self.too_few and not self.has_notable:
            level = nouns.removesuffix("s")
            found.append(
                f"The attribution names no tokens for these {nouns}, so none is compared. Make one "
                f"of their level (attribute --level {level} --name NAME), and ablate with "
                "--attribution NAME."
            )
        elif self.too_few:
            found.append(
                f"{self.too_few} of {self.scored} {nouns} {has(self.too_few)} notable tokens at "
                f"fewer than {MIN_POSITIONS} scored positions: too few to evaluate them."
            )
        if self.dead:
            found.append(
                f"{self.dead} of {self.scored} {nouns} {verb(self.dead)} nearly dead: ablation "
                f"changes log-probabilities by less than {NEARLY_DEAD_NATS} nats "
                "(root mean square)."
            )
        return found

    def mean_line(self, nouns: str) -> str:
        interval = ""
        if np.isfinite(self.low):
            interval = (
                f" (95 % CI {self.low:+.4f} to {self.high:+.4f} over {self.evaluated} {nouns})"
            )
        return (
            f"Change of the true next token's log-probability: {self.notable:+.4f} nats where it "
            f"is notable (n = {self.notable_positions:,} positions), {self.other:+.4f} elsewhere "
            f"(n = {self.other_positions:,}). Difference: {self.difference:+.4f}{interval}."
        )

    def share_line(self, nouns: str) -> str:
        return (
            f"{self.share(self.lower)} {nouns} lower notable tokens more than others: "
            f"{self.interval(self.lower)}, by chance half. The difference is clear (its interval "
            f"lies below 0) for {self.share(self.clear_below)}: {self.interval(self.clear_below)}, "
            f"by chance 2.5 %; it lies above 0 for {self.clear_above}."
        )

    def share(self, part: int) -> str:
        return f"{part} of {self.evaluated}"

    def interval(self, part: int) -> str:
        low, high = wilson(part, self.evaluated)
        share = 100 * part / self.evaluated
        return f"{share:.0f} % (95 % CI {100 * low:.0f} to {100 * high:.0f} %)"


def has(count: int) -> str:
    return "has" if count == 1 else "have"


def verb(count: int) -> str:
    return "is" if count == 1 else "are"
