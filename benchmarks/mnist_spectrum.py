"""The spectrum of training on MNIST, beside the study: ``python -m benchmarks.mnist_spectrum``.

The study flattened the gradient of every step of a small MNIST network, stacked the steps, and
counted singular values above 10 % of the largest: 92.5 ± 11.6 of about 2,000 (ten samples of 400
steps of one training). Here a network 784–64–10 is trained on the 10,000 test digits (batch 10,
2 epochs, 2,000 steps) with several optimizers and seeds, and the spectrum is exact. Beside it stand
the nulls, and trainings whose data fade into noise.

Results go line by line to ``--json``; what is there already is not trained again.
``benchmarks.mnist_tables`` prints the tables of docs/studies/mnist-spectrum.md from such a file.
One training takes 10 to 40 seconds on one core. The digits are read from the folder in
``ONTOGENY_MNIST`` (default ``../shared/data/mnist``).

Shapes: N image, P entry of a parameter, S step.
"""

import argparse
import gzip
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analysis.spectra.concentration import CUTOFF, numbers_of
from analysis.spectra.gram import Treatment, gram_of, singular_values, treated
from analysis.spectra.nulls import NULLS, null_gram
from analysis.spectra.samples import sampled_spectra

FOLDER = Path(os.environ.get("ONTOGENY_MNIST", "../shared/data/mnist"))
BATCH, EPOCHS, HIDDEN = 10, 2, 64
TREATMENTS = (
    Treatment(),
    Treatment(subtract_mean=True),
    Treatment(skip=200),
    Treatment(unit_length=True),
)
FADING_TREATMENTS = (Treatment(), Treatment(unit_length=True))
OPTIMIZERS = {
    "SGD, learning rate 0.1": lambda own: torch.optim.SGD(own, lr=0.1),
    "SGD, learning rate 0.01": lambda own: torch.optim.SGD(own, lr=0.01),
    "SGD, momentum 0.9, learning rate 0.01": lambda own: torch.optim.SGD(
        own, lr=0.01, momentum=0.9
    ),
    "Adam, learning rate 0.001": lambda own: torch.optim.Adam(own, lr=1e-3),
}
SGD, SLOW_SGD, MOMENTUM, ADAM = OPTIMIZERS
SAMPLED_STEPS, SAMPLES = 400, 10
NULL_DRAWS = 3


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
    classes: int = 10
    """Digits 0 to this number − 1 are used, repeated up to as many images."""
    pixels: int = 28
    """Side to which images are averaged down, before they are enlarged again."""
    initial_scale: float = 1.0
    """Factor on the initial weights."""


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
    for share in (0.25, 0.5, 0.75, 1.0):
        yield Condition(SGD, seed, noise=share)
        yield Condition(SGD, seed, moved_pixels=share)
    for share in (0.25, 0.5, 0.75):
        yield Condition(SGD, seed, shuffled_labels=share)
    for classes in (2, 5):
        yield Condition(SGD, seed, classes=classes)
    for pixels in (2, 4, 7, 14):
        yield Condition(SGD, seed, pixels=pixels)
    for scale in (0.0, 0.1, 4.0, 10.0):
        yield Condition(SGD, seed, initial_scale=scale)


# --- data -----------------------------------------------------------------------------------------


def read_digits(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return images as float32 [N, 28, 28] in 0 to 1, and labels, int64 [N]."""
    found = []
    for name, offset in (("t10k-images-idx3-ubyte.gz", 16), ("t10k-labels-idx1-ubyte.gz", 8)):
        path = folder / name
        if not path.exists():
            raise SystemExit(f"{path}: is missing. Set ONTOGENY_MNIST to the folder of MNIST.")
        found.append(np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=offset))
    return found[0].reshape(-1, 28, 28).astype(np.float32) / 255, found[1].astype(np.int64)


def data_of(condition: Condition, folder: Path) -> tuple[Tensor, Tensor]:
    """Return images [N, 784] and labels [N] of a training."""
    image_NHW, label_N = read_digits(folder)
    rng = np.random.default_rng(condition.seed)
    if condition.classes < 10:
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
    return torch.from_numpy(image_NQ), torch.from_numpy(label_N)


def averaged(image_NHW: np.ndarray, side: int) -> np.ndarray:
    """Return images whose blocks of 28 / side pixels hold their mean, in the same shape."""
    block = 28 // side
    small = image_NHW.reshape(-1, side, block, side, block).mean((2, 4))
    return small.repeat(block, 1).repeat(block, 2)


# --- training -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Trained:
    """The steps of a training as rows, float32."""

    gradient_SP: np.ndarray
    update_SP: np.ndarray
    accuracy: float
    """Share of the training images that the model labels right at the end."""
    loss: float
    """Mean loss over the last 200 steps."""


def train(condition: Condition, folder: Path) -> Trained:
    image_NQ, label_N = data_of(condition, folder)
    torch.manual_seed(condition.seed)
    model = nn.Sequential(nn.Linear(784, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 10))
    with torch.no_grad():
        for own in model.parameters():
            own *= condition.initial_scale
    optimizer = OPTIMIZERS[condition.optimizer](model.parameters())
    order = torch.cat([torch.randperm(len(label_N)) for _ in range(EPOCHS)]).split(BATCH)
    size = sum(own.numel() for own in model.parameters())
    gradient_SP, update_SP = (np.empty((len(order), size), np.float32) for _ in range(2))
    losses = []
    for step, chosen_N in enumerate(order):
        loss = F.cross_entropy(model(image_NQ[chosen_N]), label_N[chosen_N])
        optimizer.zero_grad()
        loss.backward()
        before_P = flat(model.parameters())
        gradient_SP[step] = flat(own.grad for own in model.parameters())
        optimizer.step()
        update_SP[step] = flat(model.parameters()) - before_P
        losses.append(loss.item())
    with torch.no_grad():
        accuracy = (model(image_NQ).argmax(1) == label_N).float().mean().item()
    return Trained(gradient_SP, update_SP, accuracy, float(np.mean(losses[-200:])))


def flat(tensors) -> np.ndarray:
    """Return a copy of all tensors as one vector, [P]."""
    return torch.cat([own.detach().flatten() for own in tensors]).numpy()


# --- spectra --------------------------------------------------------------------------------------


def measure(condition: Condition, folder: Path) -> dict:
    """Return a line of the results: plain JSON."""
    trained = train(condition, folder)
    line = {"condition": asdict(condition), "accuracy": trained.accuracy, "loss": trained.loss}
    gram_SS = gram_of(trained.gradient_SP)
    if condition in fading(condition.seed):
        line["gradients"] = {one.name: numbers(treated(gram_SS, one)) for one in FADING_TREATMENTS}
        return line
    line["gradients"] = spectrum(gram_SS, trained.gradient_SP.shape[1], condition.seed)
    if not condition.shuffled_labels:
        line["updates"] = numbers(gram_of(trained.update_SP))
        line["weights"] = numbers(gram_of(np.cumsum(trained.update_SP, 0, np.float64)))
    return line


def numbers(gram_SS: np.ndarray) -> dict:
    return vars(numbers_of(singular_values(gram_SS)))


def spectrum(gram_SS: np.ndarray, entries: int, seed: int) -> dict:
    """Return numbers of each treatment and null, of the sampled form, and of other cutoffs.

    ``gap``: how many values stand before the largest relative gap among the first 31.
    """
    rng = np.random.default_rng(seed)
    value_K = singular_values(gram_SS)
    samples = sampled_spectra(gram_SS, SAMPLED_STEPS, SAMPLES, rng, CUTOFF)
    nulls = {
        null: [null_gram(null, gram_SS, entries, rng) for _ in range(NULL_DRAWS)] for null in NULLS
    }
    return {
        **{treatment.name: numbers(treated(gram_SS, treatment)) for treatment in TREATMENTS},
        **{null: [numbers(drawn_SS) for drawn_SS in drawn] for null, drawn in nulls.items()},
        "samples": samples.to_dict("list"),
        "gap": int((value_K[:30] / value_K[1:31]).argmax()) + 1,
        "cutoffs": {
            str(share): int((value_K > share * value_K[0]).sum()) for share in (0.05, 0.15)
        },
    }


# --- the command ----------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, required=True, help="file of results, a line each")
    arguments = parser.parse_args()
    known = arguments.json.read_text().splitlines() if arguments.json.exists() else []
    done = [json.loads(line)["condition"] for line in known]
    for condition in conditions():
        if asdict(condition) in done:
            continue
        line = measure(condition, FOLDER)
        with arguments.json.open("a") as file:
            file.write(json.dumps(line) + "\n")
        found = line["gradients"]["as recorded"]
        print(
            f"{condition}: {found['over_cutoff']:.0f} over 10 %, accuracy {line['accuracy']:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
