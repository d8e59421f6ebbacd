"""Find the passages of the training text where neurons are most active, in the trained model.

A neuron's activation is its input of the unit, without dropout. Inputs of ``linear2`` are at least
0 (after the ReLU); inputs of ``linear1`` have a sign, and the largest in absolute value count.

Shapes: N datum, T position, I neuron of a unit, K shown datum.
"""

from collections.abc import Collection

import numpy as np
import pandas as pd
import pyarrow as pa

from analysis.activations.quantities import activation_blocks
from analysis.run.run import Run

Neuron = tuple[str, int]
PASSAGES = pa.schema(
    [
        pa.field("unit", pa.string()),
        pa.field("neuron", pa.int32()),  # column of the unit
        pa.field("datum", pa.int32()),
        pa.field("position", pa.int16()),  # of the activation that is largest in absolute value
        pa.field("activation", pa.float32()),  # there, no unit
    ]
)
"""One row per neuron and datum, largest absolute activation first. Each datum occurs once."""


def activating_passages(
    run: Run, neurons: Collection[Neuron], datum_N: np.ndarray, most: int
) -> pd.DataFrame:
    """Return ``PASSAGES``: for each neuron the ``most`` datums of those given.

    Raises what ``run.parted`` raises.
    """
    units = list(dict.fromkeys(unit for unit, _ in neurons))
    own = {unit: np.array([n for other, n in neurons if other == unit]) for unit in units}
    value = {unit: np.empty((len(datum_N), len(own[unit])), np.float32) for unit in units}
    position = {unit: np.empty(value[unit].shape, np.int16) for unit in units}
    for block, inputs in activation_blocks(run.parted(), run.token_NT[datum_N], units):
        for unit, x_NTI in inputs.items():
            own_NTI = x_NTI[:, :, own[unit]]
            at_NI = np.abs(own_NTI).argmax(1)
            position[unit][block] = at_NI
            value[unit][block] = np.take_along_axis(own_NTI, at_NI[:, None], 1)[:, 0]
    frames = [
        strongest(unit, own[unit], datum_N, value[unit], position[unit], most) for unit in units
    ]
    return pd.concat([PASSAGES.empty_table().to_pandas(), *frames], ignore_index=True)


def strongest(
    unit: str,
    neuron_I: np.ndarray,
    datum_N: np.ndarray,
    value_NI: np.ndarray,
    position_NI: np.ndarray,
    most: int,
) -> pd.DataFrame:
    """Return ``PASSAGES`` of one unit; datums without any activation are left out."""
    order_KI = np.argsort(-np.abs(value_NI), axis=0, kind="stable")[:most]
    row_J = order_KI.T.ravel()
    column_J = np.repeat(np.arange(len(neuron_I)), len(order_KI))
    found = pd.DataFrame(
        {
            "unit": unit,
            "neuron": neuron_I[column_J],
            "datum": datum_N[row_J],
            "position": position_NI[row_J, column_J],
            "activation": value_NI[row_J, column_J],
        }
    )
    return found[found["activation"] != 0]
