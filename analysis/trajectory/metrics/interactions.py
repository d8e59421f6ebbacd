"""Do tokens act on a prediction one by one, or together? Shapley–Taylor interactions of pairs.

Source: Sundararajan et al. 2020, "The Shapley Taylor interaction index"; Saphra's "Knowing your
nonlinearities" asks how interactions of tokens fall with their distance. Computed by shapiq, exact
over all subsets of the tokens. Shapes: N datum, S subset, P token of the context.
"""

from collections.abc import Callable, Iterator
from itertools import combinations

import numpy as np
import torch

from analysis.trajectory.metrics.row import WHOLE, Row, mean_row
from analysis.trajectory.observed.model import Observed
from analysis.trajectory.observed.text import Text
from capture.errors import ConfigError

CONTEXT = 8
"""Tokens whose pairs are measured: all 2⁸ subsets of them are predicted from."""
MOST_DATUMS = 20
Game = Callable[[np.ndarray], np.ndarray]
"""Function from subsets, bool [S, P], to values, [S]."""


def token_interactions(model: Observed, text: Text) -> Iterator[Row]:
    """Mean |interaction| of two tokens on the log-probability of the next one, nats.

    The context are the last 8 tokens of a window; a token that is absent is that of another window.
    By the distance of the two tokens, and of all pairs; at most 20 datums. Null: 0, what tokens
    give that add to the log-probability one by one.
    """
    assert text.held_out
    some = text.held_out.spread(MOST_DATUMS)
    size = min(CONTEXT, text.window)
    token_NP, target_N = some.token_NT[:, -size:], some.target_NT[:, -1]
    found = []
    for number, (token_P, target) in enumerate(zip(token_NP, target_N, strict=True)):
        absent_P = token_NP[(number + 1) % len(token_NP)]

        def value(
            subset_SP: np.ndarray,
            token_P: np.ndarray = token_P,
            absent_P: np.ndarray = absent_P,
            target: int = int(target),
        ) -> np.ndarray:
            mixed_SP = np.where(subset_SP.astype(bool), token_P, absent_P)
            log_p_SV = model.logits(torch.from_numpy(mixed_SP))[:, -1].double().log_softmax(1)
            return log_p_SV[:, target].cpu().numpy()

        found.append(np.abs(pair_interactions(value, size)))
    size_NQ = np.array(found)
    distance_Q = np.array([second - first for first, second in combinations(range(size), 2)])
    yield mean_row("token_interactions", WHOLE, size_NQ.mean(1), 0.0)
    for distance in range(1, size):
        mean_N = size_NQ[:, distance_Q == distance].mean(1)
        yield mean_row("token_interactions", f"distance {distance}", mean_N, 0.0)


def pair_interactions(value: Game, count: int) -> np.ndarray:
    """Return the Shapley–Taylor index of order 2 of each pair of ``count`` players, in the order of
    ``itertools.combinations``; raises ``ConfigError`` if shapiq is not installed."""
    try:
        from shapiq import ExactComputer  # takes seconds to load
    except ImportError as error:
        remedy = "Install it: pip install 'ontogeny[dynamics]'"
        raise ConfigError("token_interactions", "needs the package shapiq", remedy) from error
    found = ExactComputer(value, count)("STII", 2)
    return np.array([float(found[pair]) for pair in combinations(range(count), 2)])
