"""The images of a training: the 10,000 test digits of MNIST, or what is made of them.

Shapes: N image, H row of pixels, W column, Q pixel, A place (a row or column), E entry of a
place.
"""

import gzip
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.mnist_spectrum.conditions import CLASSES, SIDE, Condition


def read_digits(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return images as float32 [N, 28, 28] in 0 to 1, and labels, int64 [N]."""
    found = []
    for name, offset in (("t10k-images-idx3-ubyte.gz", 16), ("t10k-labels-idx1-ubyte.gz", 8)):
        path = folder / name
        if not path.exists():
            raise SystemExit(f"{path}: is missing. Set ONTOGENY_MNIST to the folder of MNIST.")
        found.append(np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=offset))
    return found[0].reshape(-1, SIDE, SIDE).astype(np.float32) / 255, found[1].astype(np.int64)


def data_of(condition: Condition, folder: Path) -> tuple[Tensor, Tensor]:
    """Return images [N, 784] and labels [N] of a training."""
    image_NHW, label_N = read_digits(folder)
    rng = np.random.default_rng(condition.seed)
    if condition.classes < CLASSES:
        there_N = np.flatnonzero(label_N < condition.classes)
        chosen_N = np.resize(there_N, len(label_N))
        image_NHW, label_N = image_NHW[chosen_N], label_N[chosen_N]
    image_NQ = averaged(image_NHW, condition.pixels).reshape(len(label_N), -1).copy()
    noise_NQ = rng.random(image_NQ.shape, np.float32)
    image_NQ = (1 - condition.noise) * image_NQ + condition.noise * noise_NQ
    moved = round(condition.moved_pixels * image_NQ.shape[1])
    places_Q = rng.permutation(image_NQ.shape[1])[:moved]
    image_NQ[:, places_Q] = rng.permuted(image_NQ[:, places_Q], axis=1)
    wrong_N = rng.permutation(len(label_N))[: round(condition.shuffled_labels * len(label_N))]
    label_N = label_N.copy()
    label_N[wrong_N] = rng.permutation(label_N[wrong_N])
    shuffle(image_NQ.reshape(-1, SIDE, SIDE), condition, rng)
    return torch.from_numpy(image_NQ), torch.from_numpy(label_N)


def averaged(image_NHW: np.ndarray, side: int) -> np.ndarray:
    """Return images whose blocks of 28 / side pixels hold their mean, in the same shape."""
    block = SIDE // side
    small = image_NHW.reshape(-1, side, block, side, block).mean((2, 4))
    return small.repeat(block, 1).repeat(block, 2)


def shuffle(image_NHW: np.ndarray, condition: Condition, rng: np.random.Generator) -> None:
    """Permute rows and columns within images, and among images."""
    column_NWH = image_NHW.transpose(0, 2, 1)
    move(image_NHW, condition.moved_rows, rng)
    move(column_NWH, condition.moved_columns, rng)
    exchange(image_NHW, condition.exchanged_rows, rng)
    exchange(column_NWH, condition.exchanged_columns, rng)


def places(count: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """Return this share of the places, drawn at random."""
    return rng.permutation(count)[: round(share * count)]


def move(image_NAE: np.ndarray, share: float, rng: np.random.Generator) -> None:
    """Permute a share of the places within each image, in its own way."""
    chosen_A = places(image_NAE.shape[1], share, rng)
    order_NA = rng.permuted(np.tile(np.arange(len(chosen_A)), (len(image_NAE), 1)), axis=1)
    image_NAE[:, chosen_A] = np.take_along_axis(image_NAE[:, chosen_A], order_NA[:, :, None], 1)


def exchange(image_NAE: np.ndarray, share: float, rng: np.random.Generator) -> None:
    """Permute each of a share of the places among the images: its values stay, in other images."""
    for place in places(image_NAE.shape[1], share, rng):
        image_NAE[:, place] = image_NAE[rng.permutation(len(image_NAE)), place]
