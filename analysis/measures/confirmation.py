"""Which (neuron, token) pairs does ablation confirm? p and false discovery rates.

A pair is confirmed if ablating the neuron moves the log-probability of the token, which it did not
before training. A neuron of any model moves most tokens a little, so two hypotheses are tested, and
a pair has to refuse both:

- *no effect*: the mean change over the token's positions is zero (Student's t).
- *not specific*: the pair is like the pairs that were not named. The size of the deviation from the
  neuron's mean change is divided by what is usual for the token and for the neuron, and ranked
  among all pairs of the family that were not named. Named tokens that have nothing to do with the
  neuron rank at random.

p is the larger of the two, so it is valid for the union of both hypotheses (Berger 1982). q is the
Benjamini–Hochberg adjusted p over all tested pairs of all neurons, times an upward biased estimate
of the share of true null hypotheses (Storey, Taylor & Siegmund 2004, λ = 0.5).

A third hypothesis, *not new*, says that the effect is no larger than that of the initial weights in
the same direction (Welch's t, one-sided). Evidence of the first steps describes the initial
weights, and finds pairs on which these have large effects by chance; by size alone, half of them
would count as larger after training. It is tested for each pair by itself: old effects are real, so
that they must not lower the share of the new ones that q can find.

Shapes: S neuron, W token with enough positions, F family (a unit's neurons).
"""

from dataclasses import dataclass

import numpy as np

from analysis.measures.multiple_testing import benjamini_hochberg

LAMBDA = 0.5
"""p above which nearly all hypotheses are true, in the estimate of their share."""


@dataclass(frozen=True, eq=False)
class Changes:
    """Changes of log p(target) by neuron and token; nats, ablated − clean."""

    mean_SW: np.ndarray
    error_SW: np.ndarray
    """Standard error of the mean; infinite for fewer than two positions."""
    count_W: np.ndarray
    """Positions with the token as target."""
    overall_S: np.ndarray
    """Mean change over the positions of all tokens."""
    rms_S: np.ndarray
    """Root mean square change over the positions of all tokens."""

    @classmethod
    def of_sums(
        cls,
        change_SV: np.ndarray,
        square_SV: np.ndarray,
        count_V: np.ndarray,
        token_W: np.ndarray,
    ) -> "Changes":
        """Return the changes at ``token_W``, from sums of changes and of their squares."""
        positions = max(int(count_V.sum()), 1)
        count_W = count_V[token_W]
        mean_SW = change_SV[:, token_W] / np.maximum(count_W, 1)
        # Var = (Σ x² − n · mean²) / (n − 1)
        squares_SW = np.maximum(square_SV[:, token_W] - count_W * mean_SW**2, 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            error_SW = np.sqrt(squares_SW / ((count_W - 1) * count_W))
        error_SW[:, count_W < 2] = np.inf
        overall_S = change_SV.sum(1) / positions
        return cls(mean_SW, error_SW, count_W, overall_S, np.sqrt(square_SV.sum(1) / positions))

    def intervals(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the bounds of the 95 % intervals of the means (Student's t), both [S, W]."""
        from scipy import stats  # here, because importing it takes half a second

        reach_SW = stats.t.ppf(0.975, np.maximum(self.count_W - 1, 1)) * self.error_SW
        return self.mean_SW - reach_SW, self.mean_SW + reach_SW


def confirmation_p(changes: Changes, named_SW: np.ndarray, family_S: np.ndarray) -> np.ndarray:
    """Return p of every pair, the larger of the first two hypotheses', [S, W].

    ``named_SW`` says which pairs the record names, bool. All others are the reference that
    specificity is judged by, so at least some must be left in every family.
    """
    return np.maximum(no_effect_p(changes), unspecific_p(changes, named_SW, family_S))


def confirmation_q(p_SW: np.ndarray, named_SW: np.ndarray) -> np.ndarray:
    """Return the adjusted p of the named pairs, NaN elsewhere, [S, W]."""
    q_SW = np.full(p_SW.shape, np.nan)
    if named_SW.any():
        p_J = p_SW[named_SW]
        q_SW[named_SW] = benjamini_hochberg(p_J) * null_share(p_J)
    return q_SW


def null_share(p_J: np.ndarray) -> float:
    """Return an estimate of the share of true null hypotheses, biased upwards, at most 1."""
    return min(1.0, (1 + float((p_J > LAMBDA).sum())) / (len(p_J) * (1 - LAMBDA)))


def no_effect_p(changes: Changes) -> np.ndarray:
    """Return the two-sided p of a mean change of zero, [S, W]; 1 where nothing changes."""
    from scipy import stats

    t_SW = np.zeros(changes.mean_SW.shape)
    np.divide(np.abs(changes.mean_SW), changes.error_SW, out=t_SW, where=changes.error_SW > 0)
    return 2 * stats.t.sf(t_SW, np.maximum(changes.count_W - 1, 1))


def not_new_p(changes: Changes, initial: Changes) -> np.ndarray:
    """Return the one-sided p of an effect no larger than the initial one, [S, W].

    Effects of the other sign before training count as negative. Both means are taken as independent
    (Welch's t); on the same positions they rise and fall together, which makes p too large.
    """
    from scipy import stats

    # The effect in its own direction: negative for an initial effect of the other sign.
    before_SW = initial.mean_SW * np.sign(changes.mean_SW)
    more_SW = np.abs(changes.mean_SW) - before_SW
    error_SW = np.hypot(changes.error_SW, initial.error_SW)
    t_SW, part_SW = np.zeros(more_SW.shape), np.full(more_SW.shape, 0.5)
    known_SW = (error_SW > 0) & np.isfinite(error_SW)
    np.divide(more_SW, error_SW, out=t_SW, where=known_SW)
    np.divide(changes.error_SW**2, error_SW**2, out=part_SW, where=known_SW)
    free_W, initial_free_W = (np.maximum(each.count_W - 1, 1) for each in (changes, initial))
    degrees_SW = 1 / (part_SW**2 / free_W + (1 - part_SW) ** 2 / initial_free_W)
    return stats.t.sf(t_SW, degrees_SW)


def unspecific_p(changes: Changes, named_SW: np.ndarray, family_S: np.ndarray) -> np.ndarray:
    """Return the share of unnamed pairs of the family that deviate as much or more, [S, W]."""
    p_SW = np.ones(named_SW.shape)
    size_SW = deviations(changes)
    for family in np.unique(family_S):
        own_S = np.flatnonzero(family_S == family)
        relative_SW = two_way(size_SW[own_S])
        reference = np.sort(relative_SW[~named_SW[own_S]])
        # Ties count as deviating more, and the pair itself counts once, so p is never 0.
        above_SW = len(reference) - np.searchsorted(reference, relative_SW, side="left")
        p_SW[own_S] = np.minimum((1 + above_SW) / (1 + len(reference)), 1)
    return p_SW


def deviations(changes: Changes) -> np.ndarray:
    """Return how far each mean change is from the neuron's mean change, nats, [S, W].

    No standard error enters: all pairs of a token rest on the same positions, and are compared
    with each other first.
    """
    return np.abs(changes.mean_SW - changes.overall_S[:, None])


def two_way(size_SW: np.ndarray) -> np.ndarray:
    """Divide by the median of the token over neurons, then by that of the neuron over tokens."""
    for axis in (0, 1):
        usual = np.median(size_SW, axis=axis, keepdims=True)
        # A median of zero (most pairs are unaffected) must not turn any effect into infinity.
        usual = np.maximum(usual, size_SW.mean(axis=axis, keepdims=True) / 10)
        size_SW = np.divide(size_SW, usual, out=np.zeros(size_SW.shape), where=usual > 0)
    return size_SW
