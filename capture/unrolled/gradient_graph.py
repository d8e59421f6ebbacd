"""The gradient of a step's loss with the graph that leads to it, so that it can be differentiated.

With u a vector for each query, the derivatives of ⟨g, u⟩ by the weights (H u, H the Hessian) and by
the weight of each position's loss (⟨∇ℓ_it, u⟩) take one more backward pass through the graph
(Pearlmutter 1994).

Shapes: Q query, N slot, T token.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from capture.optim.optimizer import Tensors
from capture.unrolled.layer_norms import ShortLayerNorms
from capture.unrolled.step_loss import StepLoss
from capture.unrolled.token_losses import twice_differentiable_losses


@dataclass(frozen=True, eq=False)
class GradientGraph:
    """The gradient of one micro-batch's loss, with the graph that leads to it."""

    leaves: Tensors
    weight_NT: Tensor
    """The weights of the losses, all 1."""
    gradient: Tensors
    """By the parameters that the loss depends on."""

    @classmethod
    def of(
        cls, loss: StepLoss, weights: Mapping[str, Tensor], slots: range, *, keep: bool = True
    ) -> "GradientGraph":
        """Build it; ``keep=False`` keeps the gradient alone.

        The gradient has the bits of the engine's for the same weights.
        """
        leaves = {name: own.detach().requires_grad_() for name, own in weights.items()}
        with ShortLayerNorms():
            logit_NTV = loss.logits(leaves, slots)
        target_NT = loss.target_NT[slots.start : slots.stop]
        lost_P = twice_differentiable_losses(logit_NTV.flatten(0, 1), target_NT.flatten())
        del logit_NTV
        weight_NT = torch.ones_like(target_NT, dtype=lost_P.dtype, requires_grad=True)
        # The engine takes the mean over the micro-batch, and then its share of the batch.
        mean_NT = weight_NT * (target_NT.numel() / loss.target_NT.numel()) / target_NT.numel()
        found = torch.autograd.grad(
            (lost_P.view(target_NT.shape) * mean_NT).sum(),
            list(leaves.values()),
            create_graph=keep,
            allow_unused=True,
        )
        used = zip(leaves, found, strict=True)
        return cls(leaves, weight_NT, {name: own for name, own in used if own is not None})

    def pull_back(self, of_gradient: Mapping[str, Tensor], into: Tensors) -> Tensor:
        """Add H u to ``into`` for each query; return ⟨∇ℓ_it, u⟩, [Q, N, T].

        ``of_gradient``: u by parameter, [Q, …]. The graph is freed.
        """
        names = list(self.gradient)
        outputs = [self.gradient[name] for name in names]
        inputs = [*(self.leaves[name] for name in names), self.weight_NT]
        count = len(next(iter(of_gradient.values())))
        found = []
        for query in range(count):
            *products, by_NT = torch.autograd.grad(
                outputs,
                inputs,
                [of_gradient[name][query] for name in names],
                retain_graph=query + 1 < count,
                allow_unused=True,
            )
            for name, product in zip(names, products, strict=True):
                if product is not None:
                    into[name][query].add_(product)
            found.append(by_NT)
        return torch.stack(found)


@dataclass(frozen=True, eq=False)
class GradientGraphs:
    """The gradient of a step's loss over its micro-batches."""

    loss: StepLoss
    weights: Tensors
    whole: GradientGraph | None
    """The graph of the whole batch, if it is one micro-batch."""

    @classmethod
    def of(cls, loss: StepLoss, weights: Tensors, kept: GradientGraph | None) -> "GradientGraphs":
        """``kept``: the graph of the whole batch, if it was built before."""
        first, *others = loss.micro_batches
        if kept is None and not others:
            kept = GradientGraph.of(loss, weights, first)
        return cls(loss, weights, kept)

    def gradient(self) -> Tensors:
        """Return the gradient of the step's loss, detached."""
        if self.whole:
            return {name: own.detach() for name, own in self.whole.gradient.items()}
        total: Tensors = {}
        for slots in self.loss.micro_batches:
            part = GradientGraph.of(self.loss, self.weights, slots, keep=False)
            for name, own in part.gradient.items():
                total[name] = total[name] + own if name in total else own
        return total

    def pull_back(self, of_gradient: Mapping[str, Tensor], into: Tensors) -> Tensor:
        """Like ``GradientGraph.pull_back``, for the whole batch."""
        if self.whole:
            return self.whole.pull_back(of_gradient, into)
        parts = [
            GradientGraph.of(self.loss, self.weights, slots).pull_back(of_gradient, into)
            for slots in self.loss.micro_batches
        ]
        return torch.cat(parts, 1)


@contextmanager
def counted_bytes(apart_from: Mapping[str, Tensor]) -> Iterator[list[int]]:
    """Count what graphs that are built within keep in memory.

    The list's sum is the number of bytes. ``apart_from``: tensors that are in memory anyway.
    """
    seen = {own.untyped_storage().data_ptr() for own in apart_from.values()}
    found: list[int] = []

    def keep(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            found.append(storage.nbytes())
        return saved

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        yield found
