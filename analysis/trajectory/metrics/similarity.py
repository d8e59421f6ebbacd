"""Linear CKA: how alike two sets of representations are, up to rotation and scale.

Source: Kornblith et al. 2019, "Similarity of neural network representations revisited", equation 5
with linear kernels. Shapes: M position, D width.
"""

from collections.abc import Iterator

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
    rng = np.random.default_rng(text.seed)
    states = states_at(model, text)
    order_M = rng.permutation(len(states[0]))
    if model.before is not None:
        for number, (own_MD, old_MD) in enumerate(
            zip(states, states_at(model.before, text), strict=True)
        ):
            yield cka_row("cka_before", state_name(number), own_MD, old_MD, order_M)
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


def cka_row(
    metric: str, component: str, one_MD: np.ndarray, other_MD: np.ndarray, order_M: np.ndarray
) -> Row:
    """Return the CKA of two representations with that of permuted positions as the null."""
    value = linear_cka(one_MD, other_MD)
    null = linear_cka(one_MD, other_MD[order_M])
    return Row(metric, component, value, len(one_MD), null=null)


def linear_cka(one_MD: np.ndarray, other_MD: np.ndarray) -> float:
    """Return ‖YᵀX‖² / (‖XᵀX‖ ‖YᵀY‖) of centred representations; NaN if one is constant."""
    x, y = one_MD - one_MD.mean(0), other_MD - other_MD.mean(0)
    size = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    return float(np.linalg.norm(y.T @ x) ** 2 / size) if size else float("nan")
