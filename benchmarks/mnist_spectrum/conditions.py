"""The trainings of the study: optimizers, seeds, and what fades.

A treatment leads from MNIST, an ordinary start and the whole model to something else by levels, so
that its effect shows as a curve (A. Ray's comment on the study).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

HIDDEN, CLASSES, SIDE = 64, 10, 28
ENTRIES = SIDE**2 * HIDDEN + HIDDEN + HIDDEN * CLASSES + CLASSES
"""Number of parameters."""
OPTIMIZERS = {
    "SGD, learning rate 0.1": lambda own: torch.optim.SGD(own, lr=0.1),
    "SGD, learning rate 0.01": lambda own: torch.optim.SGD(own, lr=0.01),
    "SGD, momentum 0.9, learning rate 0.01": lambda own: torch.optim.SGD(
        own, lr=0.01, momentum=0.9
    ),
    "Adam, learning rate 0.001": lambda own: torch.optim.Adam(own, lr=1e-3),
}
SGD, SLOW_SGD, MOMENTUM, ADAM = OPTIMIZERS


@dataclass(frozen=True)
class Condition:
    """One training; the shares say how far its data are from MNIST, 0 to 1."""

    optimizer: str
    seed: int
    shuffled_labels: float = 0.0
    """Share of the images whose labels are permuted among themselves."""
    noise: float = 0.0
    """Share of uniform noise in every pixel."""
    moved_pixels: float = 0.0
    """Share of the pixels that are permuted within each image, in its own way."""
    classes: int = CLASSES
    """Digits 0 to this number − 1 are used, repeated up to as many images."""
    pixels: int = SIDE
    """Side to which images are averaged down, before they are enlarged again."""
    initial_scale: float = 1.0
    """Factor on the initial weights."""
    moved_rows: float = 0.0
    """Share of the rows that are permuted within each image, in its own way."""
    moved_columns: float = 0.0
    """Share of the columns that are permuted within each image, in its own way."""
    exchanged_rows: float = 0.0
    """Share of the rows that are permuted among the images, each in its own way."""
    exchanged_columns: float = 0.0
    """Share of the columns that are permuted among the images, each in its own way."""
    rate_scale: float = 1.0
    """Factor on the learning rate."""
    dimensions: int = ENTRIES
    """Number of random directions in which the weights move; below ``ENTRIES``: projected model."""


FADING = {
    "noise": (0.25, 0.5, 0.75, 1.0),
    "moved_pixels": (0.25, 0.5, 0.75, 1.0),
    "moved_rows": (0.25, 0.5, 1.0),
    "moved_columns": (0.25, 0.5, 1.0),
    "exchanged_rows": (1.0,),
    "exchanged_columns": (1.0,),
    "shuffled_labels": (0.25, 0.5, 0.75),
    "classes": (2, 5),
    "pixels": (2, 4, 7, 14),
    "initial_scale": (0.0, 0.1, 4.0, 10.0),
    "rate_scale": (0.01, 10.0),
    "dimensions": (300, 1000, 10_000),
}
"""Field of ``Condition`` → levels of its sweep, beside that of the plain training."""


def conditions() -> Iterator[Condition]:
    """All trainings, those of the first tables first."""
    for seed in range(5):
        for optimizer in OPTIMIZERS:
            yield Condition(optimizer, seed)
        for optimizer in (SGD, ADAM):
            yield Condition(optimizer, seed, shuffled_labels=1)
    for seed in range(3):
        yield from fading(seed)
    for seed in range(5, 10):
        for optimizer in (SLOW_SGD, SGD, ADAM):
            yield Condition(optimizer, seed)


def fading(seed: int) -> Iterator[Condition]:
    """Trainings with SGD that become something else bit by bit."""
    for field, levels in FADING.items():
        for level in levels:
            yield replace(Condition(SGD, seed), **{field: level})
