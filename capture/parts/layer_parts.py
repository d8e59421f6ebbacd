"""The heads and the MLP of one layer, from the weights that it uses."""

from collections.abc import Sequence

from torch import nn

from capture.models.mlp import is_attention, mlp_weights
from capture.parts.found_parts import Attention, Use
from capture.parts.model_parts import ModelParts

HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead", "heads")
"""Names that libraries give to the number of heads, of a module or its configuration."""
OWN_MLP = ("linear1.weight", "linear2.weight")
"""Names of ``nn.TransformerEncoderLayer``, whose weights may be square."""


def attention_in(
    network: nn.Module, layer: str, uses: Sequence[Use], width: int, given: ModelParts
) -> Attention | None:
    """Return the heads of a layer; None if it has no attention, or no number of heads is known.

    The attention is the first module of the layer that is called so, by name or class. Its last
    weight with as many outputs as the stream is wide mixes the heads.
    """
    if given.attention_out is not None:
        weight = f"{layer}.{given.attention_out}"
        own = [use for use in uses if use.weight == weight]
        root = attention_root(network, layer, weight) or weight.rpartition(".")[0]
    else:
        roots = [attention_root(network, layer, use.weight) for use in uses]
        root = next(filter(None, roots), None)
        pairs = zip(uses, roots, strict=True)
        own = [use for use, its in pairs if root and its == root and use.outputs == width]
    if not own or root is None:
        return None
    out = own[-1]
    heads = given.heads or num_heads(network, out.weight)
    return Attention(root, out.weight, heads) if heads and out.inputs % heads == 0 else None


def attention_root(network: nn.Module, layer: str, weight: str) -> str | None:
    """Return the outermost attention module within a layer that holds the weight; None if none."""
    path, part = layer, network.get_submodule(layer)
    for word in weight.removeprefix(f"{layer}.").split(".")[:-1]:
        path, part = f"{path}.{word}", part.get_submodule(word)
        if is_attention(word.lower()) or is_attention(type(part).__name__.lower()):
            return path
    return None


def num_heads(network: nn.Module, weight: str) -> int | None:
    """Return the number of heads that the modules around a weight, or the model, say."""
    path = weight.split(".")[:-1]
    names = [".".join(path[:end]) for end in range(len(path), 0, -1)]
    parts: list[object] = [network.get_submodule(name) for name in names]
    parts += [network, getattr(network, "whole", None)]
    for part in parts:
        for where in (part, getattr(part, "config", None)):
            found = (getattr(where, name, None) for name in HEADS)
            number = next((n for n in found if isinstance(n, int) and n > 0), None)
            if number:
                return number
    return None


def mlp_weights_of(
    uses: Sequence[Use], layers: Sequence[str], given: ModelParts
) -> tuple[str, ...]:
    """Return the weights of MLPs among those used, in order."""
    shapes = {use.weight: (use.outputs, use.inputs) for use in uses}
    known = set(mlp_weights(shapes))
    known |= {f"{layer}.{given.mlp_out}" for layer in layers if given.mlp_out}
    return tuple(name for name in shapes if name in known or name.endswith(OWN_MLP))


def mlp_out_of(layer: str, uses: Sequence[Use], width: int, given: ModelParts) -> str | None:
    """Return the last weight of a layer's MLP that writes to the stream; None if it has none."""
    names = mlp_weights_of(uses, [layer], given)
    own = [use.weight for use in uses if use.weight in names and use.outputs == width]
    if given.mlp_out is not None:
        own = [name for name in own if name == f"{layer}.{given.mlp_out}"]
    return own[-1] if own else None
