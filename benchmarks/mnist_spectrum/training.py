"""Trains a perceptron 784–64–10 and keeps the gradient and the update of every step.

A projected model moves in K random directions of its P parameters: θ = θ₀ + √(P/K) Q z, with Q
orthonormal [P, K] and z trained from 0 (Li et al. 2018, "Measuring the intrinsic dimension of
objective landscapes", equation 2). The factor makes the loss fall as far in a step, to first order
and in the mean over Q, as that of the whole model; with K = P it is the whole model, turned. Q is
made of random signs and of K random rows of an orthonormal cosine transform, so that it is never
stored.

Shapes: N image, P entry of a parameter, K direction, S step.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import fft
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.mnist_spectrum.conditions import CLASSES, HIDDEN, OPTIMIZERS, SIDE, Condition
from benchmarks.mnist_spectrum.images import data_of

BATCH, EPOCHS = 10, 2
LAST = 200
"""Steps over which the loss at the end is averaged."""


@dataclass(frozen=True, eq=False)
class Trained:
    """The steps of a training as rows, float32; P is K for a projected model."""

    gradient_SP: np.ndarray
    update_SP: np.ndarray
    accuracy: float
    """Share of the training images that the model labels right at the end."""
    loss: float
    """Mean loss over the last 200 steps."""


@dataclass(frozen=True, eq=False)
class Subspace:
    """Random directions √(P/K) Q of the parameters."""

    sign_P: np.ndarray
    chosen_K: np.ndarray
    """Rows of the transform."""

    @classmethod
    def drawn(cls, entries: int, dimensions: int, rng: np.random.Generator) -> "Subspace":
        sign_P = rng.choice(np.array([-1, 1], np.float32), entries)
        return cls(sign_P, rng.permutation(entries)[:dimensions])

    @property
    def length(self) -> float:
        """Length of each direction, √(P/K)."""
        return float(np.sqrt(len(self.sign_P) / len(self.chosen_K)))

    def along(self, vector_P: np.ndarray) -> np.ndarray:
        """Return the inner products with the directions, [K]."""
        return self.length * mixed(self.sign_P * vector_P)[self.chosen_K]

    def combined(self, share_K: np.ndarray) -> np.ndarray:
        """Return the sum of the directions with these factors, [P]."""
        row_P = np.zeros_like(self.sign_P)
        row_P[self.chosen_K] = self.length * share_K
        return self.sign_P * unmixed(row_P)


def mixed(vector_P: np.ndarray) -> np.ndarray:
    """Return an orthonormal transform: of the first entries, and then of the last entries.

    Each takes as many as the cosine transform is fast for.
    """
    fast, found_P = fft.prev_fast_len(len(vector_P)), vector_P.copy()
    for part in (slice(fast), slice(-fast, None)):
        found_P[part] = fft.dct(found_P[part], norm="ortho")
    return found_P


def unmixed(vector_P: np.ndarray) -> np.ndarray:
    """Return what ``mixed`` was given."""
    fast, found_P = fft.prev_fast_len(len(vector_P)), vector_P.copy()
    for part in (slice(-fast, None), slice(fast)):
        found_P[part] = fft.idct(found_P[part], norm="ortho")
    return found_P


def train(condition: Condition, folder: Path) -> Trained:
    image_NQ, label_N = data_of(condition, folder)
    torch.manual_seed(condition.seed)
    model = nn.Sequential(nn.Linear(SIDE**2, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))
    with torch.no_grad():
        for own in model.parameters():
            own *= condition.initial_scale
    moved = Moved.of(model, condition)
    optimizer = OPTIMIZERS[condition.optimizer](moved.trained)
    for group in optimizer.param_groups:
        group["lr"] *= condition.rate_scale
    order = torch.cat([torch.randperm(len(label_N)) for _ in range(EPOCHS)]).split(BATCH)
    size = sum(own.numel() for own in moved.trained)
    gradient_SP, update_SP = (np.empty((len(order), size), np.float32) for _ in range(2))
    losses = []
    for step, chosen_N in enumerate(order):
        loss = F.cross_entropy(model(image_NQ[chosen_N]), label_N[chosen_N])
        model.zero_grad()
        loss.backward()
        before_P = flat(moved.trained)
        moved.differentiate()
        gradient_SP[step] = flat(own.grad for own in moved.trained)
        optimizer.step()
        moved.follow()
        update_SP[step] = flat(moved.trained) - before_P
        losses.append(loss.item())
    with torch.no_grad():
        accuracy = (model(image_NQ).argmax(1) == label_N).float().mean().item()
    return Trained(gradient_SP, update_SP, accuracy, float(np.mean(losses[-LAST:])))


@dataclass(frozen=True, eq=False)
class Moved:
    """A model, and what its optimizer trains: the parameters, or z of a projected model."""

    model: nn.Module
    trained: list[nn.Parameter]
    start_P: np.ndarray
    subspace: Subspace | None

    @classmethod
    def of(cls, model: nn.Module, condition: Condition) -> "Moved":
        own, start_P = list(model.parameters()), flat(model.parameters())
        if condition.dimensions >= len(start_P):
            return cls(model, own, start_P, None)
        rng = np.random.default_rng((condition.seed, condition.dimensions))
        subspace = Subspace.drawn(len(start_P), condition.dimensions, rng)
        return cls(model, [nn.Parameter(torch.zeros(condition.dimensions))], start_P, subspace)

    def differentiate(self) -> None:
        """Give what is trained its gradient, from that of the parameters."""
        if self.subspace:
            grad_P = flat(own.grad for own in self.model.parameters())
            self.trained[0].grad = torch.from_numpy(self.subspace.along(grad_P))

    def follow(self) -> None:
        """Move the parameters to where what is trained stands."""
        if self.subspace:
            share_K = self.trained[0].detach().numpy()
            moved_P = torch.from_numpy(self.start_P + self.subspace.combined(share_K))
            nn.utils.vector_to_parameters(moved_P, self.model.parameters())


def flat(tensors: Iterable[Tensor | None]) -> np.ndarray:
    """Return a copy of all tensors as one vector, [P]."""
    return torch.cat([own.detach().flatten() for own in tensors if own is not None]).numpy()
