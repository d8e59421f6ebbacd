"""Which tokens contributed what to the change of each neuron: an exact, signed division.

A contribution is a sum of lifetime shifts along the neuron's change over the run
(``analysis.lifetime.contributions``). Those of all tokens and of decay sum to the size of the
change, so shares sum to 1. A token of negative share moved the neuron back.

Shapes: I neuron of a unit, V token of the vocabulary, K listed token.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from analysis.lifetime.run import LifetimeRun
from capture.shifts.tallies import By

TERMS = ("shifts", "decay", "change")
OTHER_TOKENS, DECAY = "(other tokens)", "(decay)"


def contribution_frames(run: LifetimeRun, by: By, most: int) -> Iterator[pd.DataFrame]:
    """Yield, for each MLP unit, the ``most`` largest contributions to each neuron, and the rest.

    Columns level, unit, group (neuron), rank, token_id (-1: all other tokens, -2: decay of the
    initial weights), token, contribution (units of the weight) and share (of the neuron's change;
    NaN without a change). The shares of a neuron sum to 1.
    """
    names = np.append(np.array(run.tokens, object), [DECAY, OTHER_TOKENS])  # of tokens -2 and -1
    for unit, terms in run.neuron_changes().groupby("unit", sort=False):
        part_IV = run.contributions(str(unit), by).T.astype(np.float64)
        token_IK = np.argsort(-np.abs(part_IV), axis=1, kind="stable")[:, :most]
        part_IK = np.take_along_axis(part_IV, token_IK, 1)
        shifts_I, decay_I, change_I = (terms[name].to_numpy() for name in TERMS)
        # What rounding misses of the sum over tokens goes to the other tokens.
        others_I = shifts_I - part_IK.sum(1)
        part_IK = np.column_stack([part_IK, others_I, decay_I])
        ends_IK = np.broadcast_to([-1, -2], (len(terms), 2))
        token_M = np.column_stack([token_IK, ends_IK]).ravel()
        part_M, size = part_IK.ravel(), part_IK.shape[1]
        change_M = np.repeat(change_I, size)
        yield pd.DataFrame(
            {
                "level": "neuron",
                "unit": unit,
                "group": np.repeat(terms["neuron"].to_numpy(), size),
                "rank": np.tile(np.arange(size), len(terms)),
                "token_id": token_M,
                "token": names[token_M],
                "contribution": part_M,
                "share": np.divide(
                    part_M, change_M, out=np.full(len(part_M), np.nan), where=change_M > 0
                ),
            }
        )
