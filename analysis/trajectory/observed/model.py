"""A model at a checkpoint, as metrics see it: logits, residual states, attention, logit lens.

Works for Ontogeny's transformer and for Hugging Face's causal language models, whose parts are
found with hooks. What a model has is found by trying it on two tokens (``parts``).

Shapes: N datum, T token, S source token, D width, H head, V vocabulary.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from analysis.trajectory.observed.given import GivenNetwork
from analysis.trajectory.observed.heads import HeadMatrices, head_matrices
from capture.errors import CaptureError, ConfigError
from capture.models.huggingface import HFModel, layers_pattern
from capture.models.transformer import AnyModel, LanguageModel, SelfAttention
from capture.parts.parted import Parted, parted

Network = AnyModel | GivenNetwork
Part = Literal[
    "logits at all positions",
    "layers",
    "attention",
    "head outputs",
    "head matrices",
    "head paths",
    "neurons",
    "logit lens",
]
OUT_PROJECTIONS = ("out_proj", "c_proj", "o_proj", "dense")
"""Names that libraries give to the weight that mixes the heads' outputs."""


@dataclass(eq=False)
class Observed:
    """A model after so many steps, without dropout and without gradients."""

    step: int
    network: Network
    before: "Observed | None" = None
    """The model at the measured checkpoint before, which has its own ``before``; None if none."""

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def weights(self) -> dict[str, Tensor]:
        """Parameters by name; tied ones once."""
        return dict(self.network.named_parameters())

    @property
    def scored(self) -> slice:
        """The positions whose logits the network returns: all, or some at the end."""
        last = getattr(self.network, "scored", None)
        return slice(None) if last is None else slice(-last, None)

    # --- forward passes ---------------------------------------------------------------------------

    @torch.inference_mode()
    def logits(self, token_NT: Tensor) -> Tensor:
        """Return logits, [N, T, V]."""
        return self.network(token_NT.to(self.device))

    @torch.inference_mode()
    def states(self, token_NT: Tensor) -> list[Tensor]:
        """Return the residual stream before the first layer and after each, each [N, T, D]."""
        found: list[Tensor] = []

        def first(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found.append(args[0] if args else kwargs["hidden_states"])

        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            found.append(output[0] if isinstance(output, tuple) else output)

        hooks = [self.blocks[0].register_forward_pre_hook(first, with_kwargs=True)]
        hooks += [block.register_forward_hook(after) for block in self.blocks]
        try:
            self.network(token_NT.to(self.device))
        finally:
            for hook in hooks:
                hook.remove()
        return found

    @torch.inference_mode()
    def attention(self, token_NT: Tensor) -> list[Tensor]:
        """Return the attention weights of each layer, [N, H, T, S]."""
        token_NT = token_NT.to(self.device)
        if isinstance(self.network, LanguageModel):
            states = self.states(token_NT)[:-1]
            found = zip(self.blocks, states, strict=True)
            return [attention_of(layer).weights_and_values(x_NTD)[0] for layer, x_NTD in found]
        assert isinstance(self.network, HFModel)
        given = {"input_ids": token_NT, "use_cache": False, "output_attentions": True}
        return list(self.network.whole(**given).attentions)

    @torch.inference_mode()
    def read(self, state_NTD: Tensor) -> Tensor:
        """Return the logits that the unembedding makes of a residual state (logit lens)."""
        reader = self.reader
        assert reader, "asked of a model without a logit lens"
        return reader(state_NTD)

    @contextmanager
    def without_head(self, layer: int, head: int) -> Iterator[None]:
        """Set the output of one head to zero, before the heads are mixed, within the block."""
        projection, num_heads = self.out_projections[layer], self.num_heads
        assert projection is not None

        def zero(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            mixed_NTC = args[0].clone()
            width = mixed_NTC.shape[-1] // num_heads
            mixed_NTC[..., head * width : (head + 1) * width] = 0
            return (mixed_NTC, *args[1:])

        hook = projection.register_forward_pre_hook(zero)
        try:
            yield
        finally:
            hook.remove()

    # --- parts ------------------------------------------------------------------------------------

    @cached_property
    def parts(self) -> frozenset[Part]:
        """Return what this model has for metrics to measure; a perceptron has none of it."""
        found: set[Part] = set()
        if isinstance(self.network, GivenNetwork):
            return frozenset({"logits at all positions"})
        if not isinstance(self.network, LanguageModel | HFModel):
            return frozenset()
        if self.network.scored is None:
            found.add("logits at all positions")
        if self.blocks:
            found.add("layers")
        if self.num_heads:
            found.add("attention")
        if self.num_heads and all(self.out_projections):
            found.add("head outputs")
        if self.num_heads and len(self.blocks) > 1 and self.head_matrices:
            found.add("head matrices")
        if self.parted and self.num_heads and self.network.scored is None:
            found.add("head paths")
        if self.parted and any(self.parted.parts.mlp_out):
            found.add("neurons")
        if self.blocks and self.reader:
            found.add("logit lens")
        return frozenset(found)

    @cached_property
    def blocks(self) -> list[nn.Module]:
        """The layers in order; empty if the model has no stack of layers."""
        if isinstance(self.network, LanguageModel):
            return list(self.network.layers)
        if not isinstance(self.network, HFModel):
            return []
        try:
            stack = layers_pattern(self.network).removesuffix(".*")
        except ConfigError:
            return []
        return list(self.network.get_submodule(stack).children())

    @cached_property
    def num_heads(self) -> int:
        """Attention heads per layer; 0 without attention weights, or if layers differ."""
        try:
            found = self.attention(self.two_tokens)
        except (AttributeError, TypeError, KeyError):
            return 0
        counts = {tuple(each.shape[1:]) for each in found if isinstance(each, Tensor)}
        if len(counts) != 1 or len(found) != len(self.blocks):
            return 0
        return next(iter(counts))[0]

    @cached_property
    def parted(self) -> Parted | None:
        """The model with its heads and MLPs as ``capture.parts`` finds them; None if it cannot be
        taken apart, or if a layer has no heads."""
        token_NT = self.two_tokens.repeat(2, 2)
        try:
            found = parted(self.network, token_NT)
        except (CaptureError, ValueError, TypeError, IndexError, RuntimeError):
            return None
        there = found.parts.attention
        return found if len(there) == len(self.blocks) and all(there) else None

    @cached_property
    def head_matrices(self) -> list[HeadMatrices]:
        """The matrices of each layer's heads; empty if a layer stores them in no known way."""
        pairs = zip(self.blocks, self.out_projections, strict=True)
        found = [head_matrices(block, out, self.num_heads) for block, out in pairs]
        return [own for own in found if own] if all(found) else []

    @cached_property
    def out_projections(self) -> list[nn.Module | None]:
        """The weight of each layer that mixes the heads' outputs, which lie side by side."""
        return [self.out_projection(block) for block in self.blocks]

    def out_projection(self, block: nn.Module) -> nn.Module | None:
        for name, part in block.named_modules():
            path = name.split(".")
            attends = any("attn" in word or "attention" in word for word in path[:-1])
            if attends and path[-1] in OUT_PROJECTIONS and hasattr(part, "weight"):
                return part
        return None

    @cached_property
    def reader(self) -> Callable[[Tensor], Tensor] | None:
        """Function from a residual state to logits: the last norm, if any, and the unembedding.

        None if no norm of the model, followed by its unembedding, gives its logits.
        """
        if isinstance(self.network, LanguageModel):
            return self.network.decoder
        head = self.network.get_output_embeddings() if isinstance(self.network, HFModel) else None
        if head is None or not self.blocks:
            return None
        last_NTD = self.states(self.two_tokens)[-1][:, self.scored]
        wanted_NTV = self.logits(self.two_tokens)
        for norm in self.outer_norms():
            with torch.inference_mode():
                if torch.allclose(head(norm(last_NTD)), wanted_NTV, rtol=1e-3, atol=1e-4):
                    return nn.Sequential(norm, head)
        return None

    def outer_norms(self) -> list[nn.Module]:
        """Return no norm, and every normalization outside of the layers."""
        inside = {id(part) for block in self.blocks for part in block.modules()}
        norms = [part for part in self.network.modules() if "norm" in type(part).__name__.lower()]
        return [nn.Identity(), *(part for part in norms if id(part) not in inside)]

    @property
    def two_tokens(self) -> Tensor:
        return torch.tensor([[1, 0]], device=self.device)


def attention_of(layer: nn.Module) -> SelfAttention:
    found = layer.self_attn
    assert isinstance(found, SelfAttention)
    return found
