"""A model with known parts: forward passes that keep states, and passes that resume with others.

A pass ends where the unembedding would begin, so that its caller decides which logits to compute.
A pass that resumes at a layer takes that layer's input from an earlier pass: the layers below do
nothing. Everything else (positions, masks) is the model's own code.

Shapes: N datum, T position, C entry of a state, D width, V vocabulary.
"""

from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from capture.models.transformer import LanguageModel
from capture.parts.finding import alike, call, find_parts, matrices
from capture.parts.found_parts import LogitMap, Parts, PartSite, datum_first, laid_out
from capture.parts.linear_uses import LinearUses
from capture.parts.model_parts import ModelParts
from capture.parts.stack import logits_of, skipped, watched

Replace = Callable[[Tensor], Tensor]
"""From a state to another one, [N, T, C]."""


class ReachedUnembeddingError(Exception):
    """Ends a pass; holds what enters the unembedding."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


@dataclass(frozen=True, eq=False)
class States:
    """States of a forward pass of some datums."""

    hidden_NTD: Tensor
    """What enters the unembedding."""
    at: dict[PartSite, Tensor]
    """Site → its state, [N, T, C]."""
    entering: dict[int, Tensor]
    """Layer → its input, [N, T, D]; the number of layers → the output of the last."""


@dataclass(frozen=True, eq=False)
class Parted:
    """A model in evaluation mode, its parts, and how to get logits from it."""

    network: nn.Module
    parts: Parts
    example_NT: Tensor
    """A few tokens that the model takes."""
    given: ModelParts = field(default_factory=ModelParts)

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def to(self, device: str | torch.device) -> "Parted":
        return replace(self, network=self.network.to(device))

    @property
    def unembedding(self) -> tuple[Tensor, Tensor, LogitMap]:
        """Weight, [V, D], bias, [V], and what follows them."""
        use = self.parts.unembedding
        weight = self.network.get_parameter(use.weight)
        bias = self.at_zero([use.weight])[use.weight]
        return weight.T if use.transposed else weight, bias, self.parts.logit_map

    # --- passes -----------------------------------------------------------------------------------

    @torch.inference_mode()
    def observe(
        self, token_NT: Tensor, sites: Collection[PartSite] = (), layers: Collection[int] = ()
    ) -> States:
        """Run a pass; keep the states at some sites and the inputs of some layers."""
        at: dict[PartSite, Tensor] = {}
        entering: dict[int, Tensor] = {}
        N = len(token_NT)

        def around(name: str, x: Tensor, linear: Replace) -> Tensor:
            output, axes = linear(x), self.parts.uses[name].axes
            for site in (site for site in sites if site.weight == name):
                at[site] = datum_first(x if site.end == "input" else output, axes, N).clone()
            return output

        def keep(number: int, state: Tensor) -> None:
            if number in layers:
                entering[number] = datum_first(state, self.parts.layer_axes, N).clone()

        def keep_last(number: int, output: Any) -> None:
            if number + 1 == len(self.parts.layers):
                keep(number + 1, output[0] if isinstance(output, tuple) else output)

        modules = [self.network.get_submodule(name) for name in self.parts.layers]
        with watched(modules, keep, keep_last):
            hidden_NTD = self.until_unembedding(token_NT, {site.weight for site in sites}, around)
        return States(hidden_NTD, at, entering)

    @torch.inference_mode()
    def resume(
        self, token_NT: Tensor, site: PartSite, state_NTD: Tensor | None, new: Replace
    ) -> Tensor:
        """Return what enters the unembedding, with the state at a site replaced, [N, T, D].

        ``state_NTD`` is the input of the site's layer; None runs the whole model.
        """
        axes, N = self.parts.uses[site.weight].axes, len(token_NT)

        def around(name: str, x: Tensor, linear: Replace) -> Tensor:
            if site.end == "input":
                return linear(laid_out(new(datum_first(x, axes, N)), axes))
            return laid_out(new(datum_first(linear(x), axes, N)), axes)

        with ExitStack() as within:
            if state_NTD is not None and site.layer > 0:
                below = [self.network.get_submodule(n) for n in self.parts.layers[: site.layer]]
                state = laid_out(state_NTD, self.parts.layer_axes)
                within.enter_context(skipped(below, state, self.parts.layer_rest))
            return self.until_unembedding(token_NT, {site.weight}, around)

    def until_unembedding(
        self,
        token_NT: Tensor,
        weights: Collection[str],
        around: Callable[[str, Tensor, Replace], Tensor],
    ) -> Tensor:
        """Run a pass up to the unembedding; ``around`` is called for some weights."""
        last = self.parts.unembedding

        def watch(name: str, x: Tensor, linear: Replace) -> Tensor:
            if name == last.weight:
                raise ReachedUnembeddingError(datum_first(x, last.axes, len(token_NT)))
            return around(name, x, linear)

        try:
            with LinearUses(self.matrices({*weights, last.weight}), watch):
                call(self.network, token_NT.to(self.device), self.given)
        except ReachedUnembeddingError as reached:
            return reached.hidden
        raise AssertionError("the pass that found the parts reached the unembedding")

    def with_gradients(
        self, token_NT: Tensor, weights: Collection[str]
    ) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """Return logits, [N, T, V], and inputs and outputs of weights, as they lie in the model.

        Logits are differentiable in the outputs, whether or not a parameter wants a gradient.
        """
        found: dict[str, tuple[Tensor, Tensor]] = {}
        leaf = torch.zeros((), device=self.device, requires_grad=True)

        def around(name: str, x: Tensor, linear: Replace) -> Tensor:
            output = linear(x)
            found[name] = x, output + leaf.to(output.dtype)
            return found[name][1]

        with torch.enable_grad(), LinearUses(self.matrices(weights), around):
            logits = logits_of(call(self.network, token_NT.to(self.device), self.given))
        assert logits is not None  # they were when the parts were found
        return logits, found

    @torch.inference_mode()
    def at_zero(self, weights: Collection[str]) -> dict[str, Tensor]:
        """Return what each weight's linear map makes of zeros, as a rule its bias, [O]."""
        found: dict[str, Tensor] = {}

        def around(name: str, x: Tensor, linear: Replace) -> Tensor:
            found[name] = linear(torch.zeros_like(x)).flatten(0, -2)[0].clone()
            return linear(x)

        with LinearUses(self.matrices(weights), around):
            call(self.network, self.example_NT.to(self.device), self.given)
        return found

    def matrices(self, names: Collection[str]) -> dict[str, Tensor]:
        return {name: own for name, own in matrices(self.network).items() if name in names}


KnownModel = LanguageModel | Parted
"""A model whose parts are known: the study's transformer, whose code they are, or any other."""


def parted(network: nn.Module, token_NT: Tensor, given: ModelParts | None = None) -> Parted:
    """Return a model with its parts, found on some tokens; what ``find_parts`` raises.

    ``token_NT``: some text that the model takes, of 2 positions or more, [N, T].
    """
    network = network.eval()
    N = 2 if token_NT.shape[1] != 2 else 3
    token_NT = token_NT[torch.arange(N) % len(token_NT)].to(next(network.parameters()).device)
    given = given or ModelParts()
    made = Parted(network, find_parts(network, token_NT, given), token_NT, given)
    return replace(made, parts=replace(made.parts, resumable=can_resume(made, token_NT)))


def can_resume(model: Parted, token_NT: Tensor) -> bool:
    """Return whether passes that resume at each layer equal whole passes."""
    parts = model.parts
    if not parts.resumable or not parts.uses:
        return False
    numbers = range(1, len(parts.layers) + 1)
    found = model.observe(token_NT, layers=numbers)
    if found.entering.keys() != set(numbers):
        return False
    weight = next(iter(parts.uses))
    for number in numbers:
        site = PartSite(number, weight, "input")
        try:
            hidden = model.resume(token_NT, site, found.entering[number], lambda x: x)
        except (TypeError, ValueError, AttributeError, RuntimeError):
            return False  # a layer needs more of the layers below than their state
        if not alike(hidden, found.hidden_NTD):
            return False
    return True
