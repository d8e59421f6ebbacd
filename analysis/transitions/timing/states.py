"""Hidden states of training: a Gaussian hidden Markov model over metrics of one run or several.

After Hu, Chen, Saphra and Cho, "Latent State Models of Training Dynamics" (TMLR 2023): metrics are
standardised, the number of states is that with the smallest BIC, and one model describes all runs.
BIC also cuts a smooth drift into states. The null says into how many it cuts random walks of the
same shape, so states describe a training; they do not prove phases.

Shapes: T point (of all runs), M metric, S state, R run.
"""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.transitions.shape.segments import needs
from analysis.transitions.shape.sudden import walks

RESTARTS = 3
NULLS = 5
"""Random walks for which BIC chooses a number of states too."""
POINTS_PER_STATE = 4
"""No more states are tried than a quarter of the points."""
ITERATIONS = 200


@dataclass(frozen=True, eq=False)
class Features:
    """Standardised metrics of all runs, one run after the other."""

    value_TM: np.ndarray
    step_T: np.ndarray
    length_R: list[int]

    def walks(self, rng: np.random.Generator) -> "Features":
        """Return independent random walks of the same shape, standardised."""
        parts, start = [], 0
        for length in self.length_R:
            u = np.log1p(self.step_T[start : start + length])
            parts.append(walks(u, self.value_TM.shape[1], rng).T)
            start += length
        return Features(standardise(np.concatenate(parts)), self.step_T, self.length_R)


@dataclass(frozen=True, eq=False)
class HiddenStates:
    """The model with the smallest BIC; states are numbered by first visit."""

    state_T: np.ndarray
    probability_T: np.ndarray
    """Posterior of each point's state."""
    mean_SM: np.ndarray
    spread_SM: np.ndarray
    change_SS: np.ndarray
    """Probability of the next point's state."""
    bic: dict[int, float]
    """Number of states → BIC of the model with as many."""
    null_states: list[int]
    """Number of states that BIC chooses for random walks."""


def standardise(value_TM: np.ndarray) -> np.ndarray:
    """Return each metric with mean 0 and standard deviation 1 over all points."""
    spread_M = value_TM.std(0)
    return (value_TM - value_TM.mean(0)) / np.where(spread_M > 0, spread_M, 1)


def find_states(features: Features, most: int, *, seed: int) -> HiddenStates:
    """Fit models with 1 to ``most`` states and return the best; raise ``ConfigError`` if hmmlearn
    is not installed."""
    models = fit_all(features, most, seed)
    rng = np.random.default_rng([seed, 3])
    nulls = [fit_all(features.walks(rng), most, seed) for _ in range(NULLS)]
    best = models[chosen(models)]
    by_run = best.model.predict(features.value_TM, features.length_R)
    visited, first = np.unique(by_run, return_index=True)
    order_S = visited[first.argsort()]  # states that no point has are left out
    number = {int(state): place for place, state in enumerate(order_S)}
    posterior_TS = best.model.predict_proba(features.value_TM, features.length_R)
    return HiddenStates(
        state_T=np.array([number[int(state)] for state in by_run]),
        probability_T=posterior_TS[np.arange(len(by_run)), by_run],
        mean_SM=best.model.means_[order_S],
        spread_SM=np.sqrt(np.array([np.diag(best.model.covars_[s]) for s in order_S])),
        change_SS=best.model.transmat_[np.ix_(order_S, order_S)],
        bic={states: fitted.bic for states, fitted in models.items()},
        null_states=[chosen(null) for null in nulls],
    )


@dataclass(frozen=True, eq=False)
class Fitted:
    model: Any
    bic: float


def chosen(models: dict[int, Fitted]) -> int:
    """Return the number of states with the smallest BIC."""
    return min(models, key=lambda states: models[states].bic)


def fit_all(features: Features, most: int, seed: int) -> dict[int, Fitted]:
    """Return the best model of several starts for each number of states that can be fitted."""
    largest = max(1, min(most, len(features.value_TM) // POINTS_PER_STATE))
    with quiet():
        found = {states: fit(features, states, seed) for states in range(1, largest + 1)}
    return {states: fitted for states, fitted in found.items() if fitted}


def fit(features: Features, states: int, seed: int) -> Fitted | None:
    """Return the model with the largest likelihood among ``RESTARTS`` starts.

    A start whose probabilities vanish does not count; None if that happens to all.

    Covariances are diagonal, as many metrics on few points allow no more; a variance is at least
    1e-3 of the metric's own.
    """
    try:
        from hmmlearn.hmm import GaussianHMM
    except ImportError as error:
        raise needs("hmmlearn") from error

    found = []
    for start in range(RESTARTS if states > 1 else 1):
        model = GaussianHMM(
            states,
            covariance_type="diag",
            min_covar=1e-3,
            n_iter=ITERATIONS,
            random_state=seed + start,
        )
        model.fit(features.value_TM, features.length_R)
        if not vanished(model):
            model.transmat_ = proper(model.transmat_)
            found.append((model.score(features.value_TM, features.length_R), model))
    if not found:
        return None
    best = max(found, key=lambda pair: pair[0])[1]
    return Fitted(best, float(best.bic(features.value_TM, features.length_R)))


def vanished(model: Any) -> bool:
    """Return whether a fit lost its numbers: every state became impossible at some point."""
    parts = (model.startprob_, model.transmat_, model.means_, model.covars_)
    return not all(np.isfinite(part).all() for part in parts)


def proper(change_SS: np.ndarray) -> np.ndarray:
    """Return transition probabilities in which a state that is never left keeps itself."""
    total_S = change_SS.sum(1, keepdims=True)
    return np.where(total_S > 0, change_SS, np.eye(len(change_SS)))


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what hmmlearn and k-means say of a start that does not converge; the best counts."""
    log = logging.getLogger("hmmlearn")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def runs_of(length_R: Sequence[int]) -> np.ndarray:
    """Return the run of each point, [T]."""
    return np.repeat(np.arange(len(length_R)), length_R)
