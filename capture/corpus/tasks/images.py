"""Images with labels: scikit-learn's digits, or MNIST from its idx files.

A datum is an image: one token for each pixel, row by row, whose id is the grey level. The target of
its last position is the label.

Source: Alpaydin and Kaynak 1998, "Optical recognition of handwritten digits" (1,797 images of 8 × 8
pixels, which come with scikit-learn); LeCun et al. 1998, MNIST (28 × 28 pixels).
Shapes: N datum, T pixel, M pixel and label.
"""

import gzip
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from capture.corpus.tasks.task import TaskDatums, in_random_order, random_bits
from capture.corpus.text import list_names
from capture.corpus.wikitext import Split
from capture.errors import ConfigError, CorpusError, at_least

DIGITS_SIDE, MNIST_SIDE = 8, 28
"""Height and width of an image."""
DIGITS_LEVELS, MNIST_LEVELS = 17, 256
"""Number of grey levels."""
IDX_FILES: dict[Split, str] = {"train": "train", "test": "t10k"}
"""First part of the names of each split's idx files."""
IMAGES, LABELS = 0x803, 0x801
"""First four bytes of an idx file of images, and of one of labels."""
REMEDY = "Give a folder with train-images-idx3-ubyte and train-labels-idx1-ubyte (or .gz)"
MAX_BYTES = 2**28
"""Largest idx file to read, uncompressed; MNIST has 47 MB."""


@dataclass(frozen=True, kw_only=True)
class ImagesConfig:
    """Images; used if corpus.kind is digits or mnist."""

    shuffled_labels: float = 0.0
    """Share of the training images whose labels are exchanged at random, as a null."""
    seed: int = 0
    """Seed of the order of the images, and so of which are held out, and of shuffled labels."""

    def __post_init__(self) -> None:
        at_least("corpus.images.seed", self.seed, 0)
        if not 0 <= self.shuffled_labels <= 1:
            problem = f"got {self.shuffled_labels}, must be between 0 and 1"
            raise ConfigError("corpus.images.shuffled_labels", problem)


def digits(config: ImagesConfig) -> TaskDatums:
    """Return scikit-learn's digits, in random order."""
    # Loading scikit-learn takes a second; its data file is read without it.
    found = importlib.util.find_spec("sklearn")
    where = Path(found.origin or "").parent / "datasets/data/digits.csv.gz" if found else None
    if where is None or not where.is_file():
        problem = "scikit-learn's digits are not installed"
        raise CorpusError("digits", problem, "Run: pip install scikit-learn")
    with gzip.open(where) as lines:
        token_NM = np.loadtxt(lines, delimiter=",").astype(np.int32)
    return as_task({"train": token_NM}, config, DIGITS_LEVELS, DIGITS_SIDE)


def mnist(folder: Path, config: ImagesConfig) -> TaskDatums:
    """Return the images of a folder of idx files, each split in random order.

    A folder with test images alone gives those as the one split. Raises ``CorpusError`` for a
    folder without images.
    """
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "does not exist"
        raise CorpusError(str(folder), problem, REMEDY)
    splits: dict[Split, np.ndarray] = {}
    for split, name in IDX_FILES.items():
        if image_NT := read_idx(folder, f"{name}-images-idx3-ubyte", IMAGES):
            label_N = read_idx(folder, f"{name}-labels-idx1-ubyte", LABELS)
            splits[split] = joined(folder, name, image_NT[0], label_N)
    if not splits:
        raise CorpusError(str(folder), f"has no idx files; it holds {list_names(folder)}", REMEDY)
    splits = splits if "train" in splits else {"train": splits["test"]}
    return as_task(splits, config, MNIST_LEVELS, MNIST_SIDE)


def joined(folder: Path, name: str, image_NT: np.ndarray, labels: list[np.ndarray]) -> np.ndarray:
    """Return images and labels side by side, int32 [N, M]; raises ``CorpusError`` for others."""
    if not labels or len(labels[0]) != len(image_NT):
        problem = f"has {len(image_NT):,} images in {name}-images-idx3-ubyte, "
        problem += f"but {len(labels[0]) if labels else 0:,} labels"
        raise CorpusError(str(folder), problem, REMEDY)
    return np.column_stack([image_NT, labels[0]]).astype(np.int32)


def read_idx(folder: Path, name: str, kind: int) -> list[np.ndarray]:
    """Return the rows of an idx file, uint8, as the only item; empty if there is no such file.

    Raises ``CorpusError`` for a file that is not an idx file of images of 28 × 28 or of labels.
    """
    for path in (folder / name, folder / f"{name}.gz"):
        if not path.is_file():
            continue
        try:
            with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except (OSError, EOFError) as error:
            raise CorpusError(str(path), f"cannot be read ({error})", "Fetch it again") from error
        header = 16 if kind == IMAGES else 8
        sizes = np.frombuffer(data[:header].ljust(header, b"\0"), ">u4").astype(np.int64)
        width = int(sizes[2:].prod())
        fits = width == (MNIST_SIDE**2 if kind == IMAGES else 1)
        if not fits or sizes[0] != kind or len(data) != header + sizes[1] * width:
            what = "images of 28 × 28 pixels" if kind == IMAGES else "labels"
            raise CorpusError(str(path), f"is not an idx file of {what}", "Fetch it again")
        row_NW = np.frombuffer(data, np.uint8, offset=header).reshape(-1, width)
        return [row_NW if kind == IMAGES else row_NW[:, 0]]
    return []


def as_task(
    splits: dict[Split, np.ndarray], config: ImagesConfig, levels: int, side: int
) -> TaskDatums:
    """Return the images of each split in random order, with the text "3 (8 × 8 pixels)"."""
    mixed: dict[Split, np.ndarray] = {}
    for split, token_NM in splits.items():
        mixed[split] = token_NM[in_random_order(len(token_NM), config.seed)]
    mixed["train"] = with_shuffled_labels(mixed["train"], config)
    texts: dict[Split, list[str]] = {
        split: [f"{label} ({side} × {side} pixels)" for label in token_NM[:, -1].tolist()]
        for split, token_NM in mixed.items()
    }
    return TaskDatums([str(level) for level in range(levels)], mixed, texts)


def with_shuffled_labels(token_NM: np.ndarray, config: ImagesConfig) -> np.ndarray:
    """Return the datums with the labels of the configured share exchanged among each other."""
    count = round(config.shuffled_labels * len(token_NM))
    chosen_S = random_bits(config.seed, 1, len(token_NM)).argsort(kind="stable")[:count]
    token_NM = token_NM.copy()
    token_NM[np.sort(chosen_S), -1] = token_NM[chosen_S, -1]
    return token_NM
