"""Linear CKA: how alike two sets of representations are, up to rotation and scale.

Source: Kornblith et al. 2019, "Similarity of neural network representations revisited", equation 5
with linear kernels. Shapes: M position, D width.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from analysis.trajectory.metrics.row import Row, state_name
from analysis.trajectory.observed.model import Observed
from analysis.trajectory.observed.text import Text

MOST_POSITIONS = 2000


def representation_similarity(model: Observed, text: Text) -> Iterator[Row]:
    """Linear CKA of residual states, 0 to 1, over positions of held-out text.

    ``cka_before``: of each layer with itself at the measured checkpoint before. ``cka_layers``: of
    each pair of layers, as in ``layer 0 ~ layer 1``. Null: the same with positions permuted.
    """
    states = [Centred.of(state_MD) for state_MD in states_at(model, text)]
    order_M = np.random.default_rng(text.seed).permutation(len(states[0].state_MD))
    if model.before is not None:
        before = [Centred.of(state_MD) for state_MD in states_at(model.before, text)]
        for number, pair in enumerate(zip(states, before, strict=True)):
            yield cka_row("cka_before", state_name(number), *pair, order_M)
    for first in range(len(states)):
        for second in range(first + 1, len(states)):
            name = f"{state_name(first)} ~ {state_name(second)}"
            yield cka_row("cka_layers", name, states[first], states[second], order_M)


def states_at(model: Observed, text: Text) -> list[np.ndarray]:
    """Return the residual states at up to ``MOST_POSITIONS`` positions, each [M, D]."""
    assert text.held_out
    token_NT = text.held_out.spread(max(2, MOST_POSITIONS // text.window)).token_NT
    states = model.states(torch.from_numpy(token_NT))
    return [state_NTD.flatten(0, 1).double().cpu().numpy() for state_NTD in states]


@dataclass(frozen=True, eq=False)
class Centred:
    """A representation around its mean, [M, D], and the norm ‖XᵀX‖, which all its pairs need."""

    state_MD: np.ndarray
    size: float

    @classmethod
    def of(cls, state_MD: np.ndarray) -> "Centred":
        centred_MD = state_MD - state_MD.mean(0)
        return cls(centred_MD, float(np.linalg.norm(centred_MD.T @ centred_MD)))

    def similarity(self, other: "Centred", order_M: np.ndarray | None = None) -> float:
        """Return the linear CKA with another; ``order_M`` permutes the positions of the other."""
        y_MD = other.state_MD if order_M is None else other.state_MD[order_M]
        size = self.size * other.size
        return float(np.linalg.norm(y_MD.T @ self.state_MD) ** 2 / size) if size else float("nan")


def cka_row(metric: str, component: str, one: Centred, other: Centred, order_M: np.ndarray) -> Row:
    """Return the CKA of two representations with that of permuted positions as the null."""
    null = one.similarity(other, order_M)
    return Row(metric, component, one.similarity(other), len(one.state_MD), null=null)
