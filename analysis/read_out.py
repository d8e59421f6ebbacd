"""Read the factors of a datum's gradient out in the vocabulary, as the logit lens reads states.

A position t of a datum adds δ_t a_tᵀ to the gradient of a weight, and a multiple of −δ_t a_tᵀ to
the weight. So the weight learns to answer an input like a_t with −δ_t. Where these vectors are as
wide as the residual stream, the unembedding says which tokens they stand for (Katz et al. 2024,
"Backward Lens", section 4; logit lens, nostalgebraist 2020).

A vector x is read as if it were added to the state before the final norm: the norm without its
division by the state's size (less the mean if it subtracts one, times its gain), the unembedding,
less the mean over the vocabulary. Later layers are left out. At another layer than the last, this
is a guess at what the layers between make of x.

Shapes: T entry of a datum, D width of the residual stream, V token of the vocabulary, K shown.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor, nn

from analysis.run.run import Run
from capture.errors import UnitError, at_least
from capture.gradients.factors import Factor
from capture.models.transformer import Layer
from capture.parts import KnownModel, Parted
from capture.parts.direct_path import FinalNorm, final_norm

READ_OUT = pa.schema(
    [
        pa.field("position", pa.int32()),  # in the window
        pa.field("side", pa.string()),  # input: a; output: −δ
        pa.field("rank", pa.int32()),  # 1, 2, … from the largest logit; −1, −2, … from the smallest
        pa.field("token_id", pa.int32()),
        pa.field("token", pa.string()),
        pa.field("logit", pa.float64()),  # less the mean over the vocabulary
        pa.field("unembedding_step", pa.int32()),  # updates before the unembedding that was taken
    ]
)
"""One row per position, side and token; positions ascending, the largest logit first."""
COLUMNS = READ_OUT.names
WEIGHTS = "Choose a weight of two axes that reads or writes the residual stream"
Lens = Callable[[Tensor], Tensor]
"""From vectors, [T, D], to logits, [T, V]."""


@torch.inference_mode()
def read_out(run: Run, step: int, datum: int, unit: str, most: int) -> pd.DataFrame:
    """Return ``READ_OUT``: the ``most`` largest and smallest logits of each position and side.

    Positions that add nothing to the gradient (δ = 0) are left out. The unembedding is that of the
    step; of a custom loop, whose steps cannot be replayed, that of the last checkpoint before it.
    Raises ``UnitError`` for a unit of one axis, and for one that neither reads nor writes the
    residual stream, and what ``Run.weights`` raises.
    """
    at_least("most", most, 1)
    found = run.gradients.read(unit, [(step, datum)])[0]
    if len(found.shape) != 2:
        raise UnitError(unit, "has one axis, so that its gradient has no two sides", WEIGHTS)
    taken = checkpoint_before(run, step) if run.from_custom_loop else step
    width, lens = lens_of(run.parted(taken), unit)
    vectors = [(use, *each) for use in found.uses for each in sides(use, width)]
    if not vectors:
        problem = f"{found.shape} neither reads nor writes states of {width} features"
        raise UnitError(unit, problem, WEIGHTS)
    frames = [largest(lens(vector_TD), use, side, most) for use, side, vector_TD in vectors]
    table = pd.concat(frames, ignore_index=True)
    table["unembedding_step"] = np.int32(taken)
    names = dict(enumerate(run.tokens))
    table["token"] = [names.get(number, str(number)) for number in table["token_id"]]
    return table.sort_values(["position", "side"], kind="stable", ignore_index=True)[COLUMNS]


def checkpoint_before(run: Run, step: int) -> int:
    """Return the last number of steps, at most ``step``, after which the run has a checkpoint."""
    return max([0, *(done for segment in run.segments if (done := segment.end_step) <= step)])


def sides(use: Factor, width: int) -> list[tuple[str, Tensor]]:
    """Return the sides of a datum's factor that are as wide as the stream: name, [T, D]."""
    both = {"input": use.a_NTI, "output": -use.delta_NTO}
    return [(side, x[0]) for side, x in both.items() if x is not None and x.shape[2] == width]


def largest(logit_TV: Tensor, use: Factor, side: str, most: int) -> pd.DataFrame:
    """Return the largest and smallest logits of each entry that adds to the gradient."""
    entry_S = use.delta_NTO[0].any(1).nonzero()[:, 0]
    order_SV = logit_TV[entry_S].sort(dim=1, descending=True, stable=True).indices
    number = min(most, order_SV.shape[1])
    token_SK = torch.cat([order_SV[:, :number], order_SV[:, -number:]], 1)
    rank_K = [*range(1, number + 1), *range(-number, 0)]
    return pd.DataFrame(
        {
            "position": (entry_S // use.per_position).int().repeat_interleave(2 * number).numpy(),
            "side": side,
            "rank": np.tile(np.array(rank_K, np.int32), len(entry_S)),
            "token_id": token_SK.int().flatten().numpy(),
            "logit": logit_TV[entry_S].gather(1, token_SK).double().flatten().numpy(),
        }
    )


# --- the lens -------------------------------------------------------------------------------------


def lens_of(model: KnownModel, unit: str) -> tuple[int, Lens]:
    """Return the width of the states that a model's unembedding reads, and the lens.

    Raises ``UnitError`` for a final norm that is no linear map but for a division.
    """
    if isinstance(model, Parted):
        weight_VD, _, logit_map = model.unembedding
        norm, scale = final_norm(model, weight_VD.shape[1]), logit_map.scale
    else:
        weight_VD, norm, scale = model.decoder.weight, last_norm(model.layers[-1]), 1.0
    if norm is None:
        problem = "cannot be read out: the final norm is no gain after a division"
        raise UnitError(unit, problem, "Use run.gradients and a lens of your own")

    def lens(vector_TD: Tensor) -> Tensor:
        logit_TV = norm(vector_TD.to(weight_VD)) @ weight_VD.T * scale
        return (logit_TV - logit_TV.mean(1, keepdim=True)).float().cpu()

    return weight_VD.shape[1], lens


def last_norm(layer: nn.Module) -> FinalNorm:
    """Return the norm behind the last layer of the study's transformer; its layers end with it."""
    assert isinstance(layer, Layer)
    norm = layer.norm2 if layer.has_mlp else layer.norm1
    if isinstance(norm, nn.LayerNorm):
        return FinalNorm(norm.weight, True)
    return FinalNorm(torch.ones(layer.self_attn.out_proj.out_features), False)
