"""The direct path from an MLP's neurons to the logits: their weights, the final norm, unembedding.

The final norm is taken without its division by the size of the state: a gain per entry, after the
mean is subtracted if the norm does so. Both are measured on the norm itself, so any norm that is
such a map is known. Shapes: I neuron, D width, V token of the vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from capture.parts.finding import alike
from capture.parts.found_parts import datum_first, laid_out
from capture.parts.parted import Parted, Replace
from capture.parts.stack import watched


@dataclass(frozen=True, eq=False)
class FinalNorm:
    """A norm without its division: subtract the mean or not, then multiply by the gain."""

    gain_D: Tensor
    subtracts_mean: bool

    def __call__(self, direction_ID: Tensor) -> Tensor:
        if self.subtracts_mean:
            direction_ID = direction_ID - direction_ID.mean(1, keepdim=True)
        return direction_ID * self.gain_D


@torch.inference_mode()
def final_norm(model: Parted, width: int) -> FinalNorm | None:
    """Return what the final norm does to directions; None if it is no such map.

    Without a norm the gain is 1.
    """
    name, device = model.parts.final_norm, model.device
    if name is None:
        return FinalNorm(torch.ones(width, device=device), False)
    norm = model.network.get_submodule(name)
    # Entries of size 1 whose mean is 0: every norm divides them by 1, but for its epsilon.
    sign_D = torch.ones(width, device=device)
    sign_D[1::2] = -1
    if width % 2 or norm(sign_D[None]).shape != (1, width):
        return None
    gain_D = (norm(sign_D[None]) - norm(-sign_D[None]))[0] / (2 * sign_D)
    shifted = norm(sign_D[None] + 3) - norm(sign_D[None])
    subtracts = bool(shifted.abs().max() < 1e-3 * gain_D.abs().max())
    return FinalNorm(gain_D, subtracts)


@torch.inference_mode()
def writes_to_stream(model: Parted, weight: str) -> bool:
    """Return whether what a weight puts out is added to its layer's output as it is.

    It is not where a norm follows the MLP. Found by adding something to the weight's output.
    """
    use, layer = model.parts.uses[weight], model.parts.uses[weight].layer
    if layer >= len(model.parts.layers):
        return False
    more = torch.linspace(-1, 1, use.outputs, device=model.device)

    def output(added: Tensor | None) -> Tensor:
        kept: list[Tensor] = []

        def around(name: str, x: Tensor, linear: Replace) -> Tensor:
            y_NTD = datum_first(linear(x), use.axes, len(model.example_NT))
            return laid_out(y_NTD if added is None else y_NTD + added, use.axes)

        def left(number: int, state: object) -> None:
            first = state[0] if isinstance(state, tuple) else state
            if number == layer and isinstance(first, Tensor):
                kept.append(datum_first(first, model.parts.layer_axes, len(model.example_NT)))

        modules = [model.network.get_submodule(name) for name in model.parts.layers]
        with watched(modules, lambda number, state: None, left):
            model.until_unembedding(model.example_NT, {weight}, around)
        return kept[-1]

    difference = output(more) - output(None)
    return alike(difference, more.expand_as(difference).contiguous())


@torch.inference_mode()
def direct_logits(model: Parted, weight: str, neuron_I: Tensor) -> Tensor | None:
    """Return the logits that neurons of an MLP's last weight add per unit of activation, [I, V].

    None for other weights, and where the direct path is not linear but for a division.
    """
    if weight not in model.parts.mlp_out or not writes_to_stream(model, weight):
        return None
    use, own = model.parts.uses[weight], model.network.get_parameter(weight)
    direction_ID = (own if use.transposed else own.T)[neuron_I]
    norm, (unembedding_VD, _, logit_map) = final_norm(model, use.outputs), model.unembedding
    if norm is None or logit_map.cap is not None or unembedding_VD.shape[1] != use.outputs:
        return None
    logit_IV = logit_map(norm(direction_ID) @ unembedding_VD.T)
    return logit_IV - logit_IV.mean(1, keepdim=True)
