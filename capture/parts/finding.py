"""Find a model's parts from one forward pass on a few tokens.

Every weight with two axes that the pass uses once, in a linear map on states [N, T, C], is found
with its layer and the order of its axes. The unembedding is the last of them whose output is the
logits, up to a scale or a soft cap. Heads and MLPs follow from names, shapes and order of use.

Shapes: N datum, T position, D width, V vocabulary.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from capture.errors import ConfigError
from capture.parts.found_parts import LogitMap, Parts, Use, axes_of, datum_first
from capture.parts.layer_parts import attention_in, mlp_out_of, mlp_weights_of
from capture.parts.linear_uses import LinearUses
from capture.parts.model_parts import ModelParts
from capture.parts.stack import layer_names, logits_of, state_of, watched

TOLERANCE = 1e-4
"""Largest accepted difference of two passes, relative to the largest entry."""


@dataclass(eq=False)
class Probe:
    """What one forward pass showed. Tensors are kept outside of the layers only."""

    shape: tuple[int, int]
    num_layers: int
    uses: list[Use] = field(default_factory=list)
    """In order; those whose states are not [N, T, C] are left out."""
    kept: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Weight → its last input and output, outside of the layers."""
    entered: list[int] = field(default_factory=list)
    inside: int | None = None
    states: dict[int, Tensor] = field(default_factory=dict)
    """Layer → its input."""
    returned: Any = None
    """What the last layer returned."""
    norms: list[tuple[str, Tensor]] = field(default_factory=list)
    """Outputs of normalizations behind the layers."""
    embedding: str | None = None
    logits_NTV: Tensor = field(default_factory=lambda: torch.empty(0, 0, 0))

    @property
    def position_first(self) -> bool:
        first = self.states.get(0)
        N, T = self.shape
        return first is not None and N != T and tuple(first.shape[:2]) == (T, N)

    @property
    def layer(self) -> int:
        """Where a pass can resume before what happens now."""
        if self.inside is not None:
            return self.inside
        return self.num_layers if self.entered and len(self.entered) >= self.num_layers else 0

    def used(self, name: str, x: Tensor, output: Tensor, mode: LinearUses) -> None:
        first = mode.in_attention or self.position_first
        axes = axes_of(x, self.shape, position_first=first)
        if axes is not None:
            sizes = x.shape[-1], output.shape[-1]
            self.uses.append(Use(name, self.layer, axes, *sizes, mode.transposed))
        if self.inside is None:
            self.kept[name] = x, output


@torch.inference_mode()
def find_parts(network: nn.Module, token_NT: Tensor, given: ModelParts | None = None) -> Parts:
    """Return the parts of a model, from a pass on some tokens, N ≥ 2 and T ≥ 2, N ≠ T.

    Raises ``ConfigError`` if the model gives no logits for all positions, if no weight gives them,
    or if a part that was ``given`` does not exist.
    """
    given = given or ModelParts()
    names = layer_names(network, given.layers)
    probe = look(network, token_NT, names, given)
    counts = Counter(use.weight for use in probe.uses)
    once = [use for use in probe.uses if counts[use.weight] == 1]
    unembedding, logit_map = find_unembedding(network, probe, given.unembedding)
    uses = {use.weight: use for use in once if use.weight != unembedding.weight}
    width = probe.states[0].shape[-1] if probe.states else unembedding.inputs
    own = [[use for use in once if inside(use.weight, name)] for name in names]
    layers = list(zip(names, own, strict=True))
    output = probe.returned
    hidden_NTD = datum_first(probe.kept[unembedding.weight][0], unembedding.axes, len(token_NT))
    return Parts(
        layers=names,
        uses=uses,
        attention=tuple(attention_in(network, *each, width, given) for each in layers),
        mlp=mlp_weights_of(list(uses.values()), names, given),
        mlp_out=tuple(mlp_out_of(*each, width, given) for each in layers),
        unembedding=unembedding,
        logit_map=logit_map,
        embedding=given.embedding or probe.embedding,
        final_norm=given.final_norm or norm_before(probe, hidden_NTD, unembedding),
        layer_axes="position first" if probe.position_first else "datum first",
        layer_rest=rest_of(output),
        resumable=probe.entered == list(range(len(names))),
    )


def look(network: nn.Module, token_NT: Tensor, layers: tuple[str, ...], given: ModelParts) -> Probe:
    """Run the model on some tokens and note what it uses, in order."""
    N, T = token_NT.shape
    probe = Probe((N, T), len(layers))

    def around(name: str, x: Tensor, linear: Any) -> Tensor:
        output = linear(x)
        probe.used(name, x, output, mode)
        return output

    def looked(name: str, ids: Tensor) -> None:
        if probe.embedding is None and ids.shape == token_NT.shape and torch.equal(ids, token_NT):
            probe.embedding = name

    def entering(number: int, state: Tensor) -> None:
        probe.entered.append(number)
        probe.states[number], probe.inside = state, number

    def left(number: int, output: Any) -> None:
        probe.inside, probe.returned = None, output

    mode = LinearUses(matrices(network), around, looked)
    modules = [network.get_submodule(name) for name in layers]
    hooks = [
        module.register_forward_hook(lambda _, args, out, name=name: note_norm(probe, name, out))
        for name, module in network.named_modules()
        if "norm" in type(module).__name__.lower()
    ]
    try:
        with watched(modules, entering, left), mode:
            output = call(network, token_NT, given)
    finally:
        for hook in hooks:
            hook.remove()
    logits = logits_of(output)
    if logits is None or len(logits) != N:
        problem = f"returns {described(output)} for token ids, not logits [N, T, V]"
        remedy = "Say how to get them: ModelParts(logits=lambda model, tokens: …)"
        raise ConfigError(type(network).__name__, problem, remedy)
    probe.logits_NTV = logits
    return probe


def call(network: nn.Module, token_NT: Tensor, given: ModelParts) -> Any:
    return given.logits(network, token_NT) if given.logits else network(token_NT)


def described(output: Any) -> str:
    return str(list(output.shape)) if isinstance(output, Tensor) else type(output).__name__


def note_norm(probe: Probe, name: str, output: Any) -> None:
    state = state_of(output)
    if probe.inside is None and probe.entered and state is not None:
        probe.norms.append((name, state))


def matrices(network: nn.Module) -> dict[str, Tensor]:
    """Return the parameters with two axes, by name; tied ones once, under the first name."""
    return {name: own for name, own in network.named_parameters() if own.dim() == 2}


def inside(weight: str, layer: str) -> bool:
    return weight.startswith(f"{layer}.")


def rest_of(output: Any) -> tuple[Any, ...] | None:
    """Return what a layer returns beside its state, without tensors; None for the state alone."""
    if not isinstance(output, tuple):
        return None
    return tuple(None if isinstance(x, Tensor) else x for x in output[1:])


# --- the unembedding ------------------------------------------------------------------------------


def find_unembedding(network: nn.Module, probe: Probe, given: str | None) -> tuple[Use, LogitMap]:
    """Return the weight that gives the logits, and what the model does to them afterwards."""
    V = probe.logits_NTV.shape[-1]
    wanted = None if given is None else name_of(network, given)
    for use in reversed(probe.uses):
        if use.weight not in probe.kept or use.outputs != V or wanted not in (None, use.weight):
            continue
        output_NTV = datum_first(probe.kept[use.weight][1], use.axes, probe.shape[0])
        if found := logit_map_of(network, output_NTV, probe.logits_NTV):
            return use, found
    problem = f"no weight gives its {V:,} logits at all positions"
    looked = "Looked for a linear map to them behind the layers, up to a scale or soft cap"
    name = type(network).__name__
    remedy = f"{looked}; say ModelParts(unembedding=…), or logits=… for a function that makes them"
    if wanted is not None:
        problem = f"{given} does not give its logits"
    elif short := [use for use in probe.kept if probe.kept[use][1].shape[-1] == V]:
        T = probe.kept[short[-1]][1].shape[1]
        problem = f"gives logits at {T} of {probe.shape[1]} positions" if T == 1 else problem
    raise ConfigError(name, problem, remedy)


def name_of(network: nn.Module, given: str) -> str:
    """Return the name under which a weight is known; raises ``ConfigError`` without such one."""
    own = dict(network.named_parameters(remove_duplicate=False)).get(given)
    if own is None:
        raise ConfigError("ModelParts", f"the model has no parameter {given!r}")
    return next(name for name, weight in network.named_parameters() if weight is own)


def logit_map_of(network: nn.Module, output_NTV: Tensor, logits_NTV: Tensor) -> LogitMap | None:
    """Return how the model's logits follow from the unembedding's output; None if they do not."""
    output_NTV = output_NTV[:, -logits_NTV.shape[1] :].float()
    logits_NTV = logits_NTV.float()
    config = getattr(getattr(network, "whole", network), "config", None)
    cap = getattr(config, "final_logit_softcapping", None)
    largest = output_NTV.abs().argmax()
    scale = float(logits_NTV.flatten()[largest] / output_NTV.flatten()[largest])
    # The model's own cap comes first: it changes small logits too little to be seen.
    tried = [*([LogitMap(cap=float(cap))] if cap else []), LogitMap(), LogitMap(scale=scale)]
    return next((own for own in tried if alike(own(output_NTV), logits_NTV)), None)


def alike(found: Tensor, wanted: Tensor) -> bool:
    """Return whether two tensors are equal but for rounding."""
    most = TOLERANCE * float(wanted.abs().max())
    return found.shape == wanted.shape and bool((found - wanted).abs().max() <= most)


def norm_before(probe: Probe, hidden_NTD: Tensor, unembedding: Use) -> str | None:
    """Return the last normalization whose output enters the unembedding."""
    for name, output in reversed(probe.norms):
        axes = axes_of(output, probe.shape, position_first=probe.position_first)
        if axes and output.shape[-1] == unembedding.inputs:
            same = torch.equal(datum_first(output, axes, probe.shape[0]), hidden_NTD)
            if same:
                return name
    return None
