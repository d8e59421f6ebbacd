"""Find the tokens that a neuron writes towards and away from, directly into the logits.

A neuron of ``linear2`` adds its activation times its column of the weight to the residual stream; a
neuron of ``linear1`` is a coordinate of the residual stream itself. The layer's last LayerNorm,
without its division by the standard deviation, and the unembedding turn that direction into logits,
of which the mean over the vocabulary is subtracted (it has no effect on probabilities). Later
layers and the neuron's effect on its own MLP are left out: this is the direct path only (logit
lens, nostalgebraist 2020; the direct logit attribution of Elhage et al. 2021).

Shapes: I neuron, D width, V token of the vocabulary, K shown token.
"""

from collections.abc import Collection

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor, nn

from capture.models.transformer import Layer
from capture.parts import KnownModel, Parted, direct_path

Neuron = tuple[str, int]
LOGITS = pa.schema(
    [
        pa.field("unit", pa.string()),
        pa.field("neuron", pa.int32()),  # column of the unit
        pa.field("side", pa.string()),  # up: logits rise with the activation; down: they fall
        pa.field("token_id", pa.int32()),
        pa.field("logit", pa.float64()),  # per unit of activation, less the mean over tokens
    ]
)
"""One row per neuron, side and token; largest absolute value first."""


def direct_logits(model: KnownModel, neurons: Collection[Neuron], most: int) -> pd.DataFrame:
    """Return ``LOGITS``: the ``most`` tokens of each side of each neuron.

    Of another model than the study's, only the hidden neurons of MLPs have a direct path, and only
    where no norm stands between the MLP and the stream (``capture.parts.direct_path``).
    """
    frames = []
    for unit in dict.fromkeys(unit for unit, _ in neurons):
        neuron_I = np.array([number for other, number in neurons if other == unit])
        logit_IV = logits_of(model, unit, neuron_I)
        if logit_IV is None:
            continue
        number = min(most, logit_IV.shape[1])
        for side, sign in (("up", 1), ("down", -1)):
            value_IK, token_IK = (sign * logit_IV).topk(number, dim=1)
            found = {
                "unit": unit,
                "neuron": np.repeat(neuron_I, number),
                "side": side,
                "token_id": token_IK.ravel().numpy(),
                "logit": sign * value_IK.ravel().double().numpy(),
            }
            frames.append(pd.DataFrame(found))
    return pd.concat([LOGITS.empty_table().to_pandas(), *frames], ignore_index=True)


@torch.inference_mode()
def logits_of(model: KnownModel, unit: str, neuron_I: np.ndarray) -> Tensor | None:
    """Return the direct effect of neurons of one unit on all logits, [I, V]; None without one."""
    if isinstance(model, Parted):
        found = direct_path.direct_logits(model, unit, torch.from_numpy(neuron_I).long())
        return None if found is None else found.float().cpu()
    _, number, name, _ = unit.split(".")
    layer = model.layers[int(number)]
    assert isinstance(layer, Layer)
    index_I = torch.from_numpy(neuron_I).long()
    direction_ID = written(layer, name)[index_I]
    if isinstance(layer.norm2, nn.LayerNorm):
        direction_ID = direction_ID - direction_ID.mean(1, keepdim=True)
        direction_ID = direction_ID * layer.norm2.weight
    logit_IV = direction_ID @ model.decoder.weight.T
    return logit_IV - logit_IV.mean(1, keepdim=True)


def written(layer: Layer, name: str) -> Tensor:
    """Return what each neuron adds to the residual stream per unit of activation, [I, D]."""
    linear = layer.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    if name == "linear2":
        return linear.weight.T
    return torch.eye(linear.in_features, dtype=linear.weight.dtype)
