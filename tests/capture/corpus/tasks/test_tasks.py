"""Each task gives the datums that its description promises, the same in every version of NumPy."""

import gzip
import os
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from checkout import ROOT
from hypothesis import given
from hypothesis import strategies as st

from capture.config.reading import make_config, read_config
from capture.corpus.config import CorpusConfig
from capture.corpus.datums import load_corpus
from capture.corpus.order import epoch_order
from capture.corpus.tasks.images import ImagesConfig, digits
from capture.corpus.tasks.maze import CHEESE, FLOOR, STAR, WALL, MazeConfig, mazes, shortest_path
from capture.corpus.tasks.modular_addition import ModularConfig, modular_addition
from capture.corpus.tasks.repeated import RepeatedConfig, repeated_sequences
from capture.errors import ConfigError, CorpusError

MNIST = Path(os.environ.get("ONTOGENY_MNIST", ROOT / "../shared/data/mnist"))


# --- modular addition -----------------------------------------------------------------------------


@given(st.integers(2, 30), st.integers(0, 5))
def test_every_pair_is_a_datum_once_and_its_target_is_the_sum(p, seed):
    made = modular_addition(ModularConfig(modulus=p, seed=seed))
    a_N, b_N, equals_N, sum_N = made.token_NM["train"].T
    assert len({*zip(a_N.tolist(), b_N.tolist(), strict=True)}) == len(a_N) == p * p
    assert ((a_N + b_N) % p == sum_N).all()
    assert {made.names[token] for token in equals_N} == {"="}


def test_the_bundled_configuration_trains_on_40_percent_of_the_pairs_in_one_batch():
    config = read_config("modular-addition")
    corpus = load_corpus(config.corpus, batch=config.training.batch)
    assert len(corpus.train) == config.training.batch == round(0.4 * 53**2)
    assert corpus.test is not None
    assert len(corpus.test) + len(corpus.train) == 53**2
    assert corpus.train.scored_NT.shape == (1124, 1)


def test_held_out_pairs_are_spread_over_sums_and_summands():
    """A share of every row of the addition table is held out, not a block of it."""
    config = CorpusConfig(kind="modular-addition", window=3, validation_share=0.0, test_share=0.6)
    held_out = load_corpus(config, batch=1).test
    assert held_out is not None
    for column in (held_out.token_NT[:, 0], held_out.token_NT[:, 1], held_out.target_NT[:, -1]):
        counts = np.bincount(column, minlength=53)
        # Binomial(53, 0.6): mean 31.8, standard deviation 3.6.
        assert 17 <= counts.min() <= counts.max() <= 46


# --- images ---------------------------------------------------------------------------------------


def test_the_digits_are_scikit_learn_s():
    from sklearn.datasets import load_digits

    theirs = load_digits()
    rows = np.column_stack([theirs.data, theirs.target]).astype(np.int32)
    ours = digits(ImagesConfig()).token_NM["train"]
    assert not np.array_equal(ours, rows)
    assert Counter(map(bytes, ours)) == Counter(map(bytes, rows))


def test_shuffling_labels_keeps_images_and_the_number_of_each_label():
    plain, mixed = (
        digits(ImagesConfig(shuffled_labels=share)).token_NM["train"] for share in (0.0, 1.0)
    )
    assert np.array_equal(plain[:, :-1], mixed[:, :-1])
    assert np.array_equal(np.bincount(plain[:, -1]), np.bincount(mixed[:, -1]))
    assert (plain[:, -1] == mixed[:, -1]).mean() == pytest.approx(0.1, abs=0.03)


def idx(folder: Path, name: str, *sizes: int, kind: int, packed: bool = False) -> None:
    """Write an idx file of bytes that count up."""
    data = struct.pack(f">{1 + len(sizes)}I", kind, *sizes)
    data += (np.arange(np.prod(sizes)) % 10).astype(np.uint8).tobytes()
    path = folder / f"{name}.gz" if packed else folder / name
    path.write_bytes(gzip.compress(data) if packed else data)


def mnist_config(folder: Path, **others: object) -> CorpusConfig:
    return make_config(
        {"corpus": {"kind": "mnist", "path": str(folder), "window": 784} | others}
    ).corpus


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_have_splits_of_their_own(tmp_path, packed):
    for name, count in (("train", 30), ("t10k", 12)):
        idx(tmp_path, f"{name}-images-idx3-ubyte", count, 28, 28, kind=0x803, packed=packed)
        idx(tmp_path, f"{name}-labels-idx1-ubyte", count, kind=0x801, packed=packed)
    corpus = load_corpus(mnist_config(tmp_path), batch=10)
    assert corpus.test is not None
    assert (len(corpus.train), len(corpus.test), corpus.validation) == (30, 12, None)
    assert sorted(corpus.train.scored_NT.ravel()) == sorted(n % 10 for n in range(30))
    row_T = corpus.train.token_NT[0]
    assert np.array_equal((row_T[0] + np.arange(784)) % 10, row_T)
    assert corpus.train.texts
    assert corpus.train.texts[0] == f"{corpus.train.scored_NT[0, 0]} (28 × 28 pixels)"


def test_damaged_and_missing_idx_files_are_one_line(tmp_path):
    with pytest.raises(CorpusError, match="has no idx files; it holds nothing"):
        load_corpus(mnist_config(tmp_path), batch=1)
    idx(tmp_path, "train-images-idx3-ubyte", 3, 28, 28, kind=0x803)
    with pytest.raises(CorpusError, match="has 3 images in train-images-idx3-ubyte, but 0 labels"):
        load_corpus(mnist_config(tmp_path), batch=1)
    idx(tmp_path, "train-labels-idx1-ubyte", 3, kind=0x803)
    with pytest.raises(CorpusError, match="is not an idx file of labels"):
        load_corpus(mnist_config(tmp_path), batch=1)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"\0\0")
    with pytest.raises(CorpusError, match="is not an idx file of images of 28 × 28 pixels"):
        load_corpus(mnist_config(tmp_path), batch=1)
    with pytest.raises(CorpusError, match="does not exist"):
        load_corpus(mnist_config(tmp_path / "none"), batch=1)


@pytest.mark.skipif(
    not (MNIST / "t10k-images-idx3-ubyte.gz").is_file(),
    reason=f"no MNIST at {MNIST}; set ONTOGENY_MNIST to a folder with its idx files",
)
def test_mnist_s_images_and_labels():
    corpus = load_corpus(mnist_config(MNIST, validation_share=0.0, test_share=0.0), batch=10)
    if len(corpus.train) != 60_000:
        labels = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
        assert np.bincount(corpus.train.scored_NT.ravel()).tolist() == labels
    assert corpus.train.token_NT.max() == 255


# --- mazes ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def starry() -> tuple[MazeConfig, np.ndarray]:
    config = MazeConfig(size=5, moves=16, corner=60, anywhere=60, held_out=5, stars=2)
    return config, mazes(config).token_NM["train"]


def test_an_episode_visits_all_stars_and_then_the_cheese_without_crossing_walls(starry):
    config, token_NM = starry
    size = config.size
    for number, row_M in enumerate(token_NM):
        cells, path = row_M[: size * size], row_M[size * size :] - 4
        assert path[0] == (size - 1) * size
        assert (cells == CHEESE).sum() == 1
        assert (cells == STAR).sum() == 2
        assert (cells[path] != WALL).all()
        row_M, column_M = np.divmod(path, size)
        assert (abs(np.diff(row_M)) + abs(np.diff(column_M)) <= 1).all()
        assert cells[path[-1]] == CHEESE
        assert set(np.flatnonzero(cells == STAR)) <= set(path.tolist())
        in_corner = cells[size - 1] == CHEESE
        assert in_corner or number >= config.corner


def test_a_maze_is_a_tree():
    """Floor cells and openings between them: one opening fewer than cells, and all are reached."""
    token_NM = mazes(MazeConfig(corner=30, anywhere=0, held_out=0)).token_NM["train"]
    for row_M in token_NM:
        floor = row_M[:49].reshape(7, 7) != WALL
        pairs = (floor[1:] & floor[:-1]).sum() + (floor[:, 1:] & floor[:, :-1]).sum()
        assert pairs == floor.sum() - 1
        assert floor[::2, ::2].all()


def test_no_held_out_maze_is_a_training_maze():
    """Of 5 × 5 cells there are only 192 trees, so a plain draw would repeat many."""
    config = MazeConfig(size=5, moves=12, corner=300, anywhere=300, held_out=20)
    made = {
        split: {row_M[:25].tobytes() for row_M in token_NM}
        for split, token_NM in mazes(config).token_NM.items()
    }
    assert not made["train"] & (made["validation"] | made["test"])
    assert len(made["train"]) > 200


def test_breadth_first_search_finds_a_shortest_path_around_a_wall():
    cells = [FLOOR, FLOOR, FLOOR, WALL, WALL, FLOOR, FLOOR, FLOOR, FLOOR]
    assert shortest_path(cells, 3, 6, 0) == [6, 7, 8, 5, 2, 1, 0]


@given(st.lists(st.integers(1, 20), min_size=2, max_size=4), st.integers(0, 9))
def test_phases_come_one_after_the_other_each_in_random_order(sizes, epoch):
    """Without phases the order is that of a text."""
    starts, total = np.cumsum(sizes)[:-1].tolist(), sum(sizes)
    order = epoch_order(total, seed=1, epoch=epoch, phases=starts)
    assert sorted(order) == list(range(total))
    phase = np.searchsorted(starts, order, side="right")
    assert (np.diff(phase) >= 0).all()
    plain = epoch_order(total, seed=1, epoch=epoch)
    for number in range(len(sizes)):
        own = np.searchsorted(starts, plain, side="right") == number
        assert np.array_equal(order[phase == number], plain[own])


def test_the_first_datums_are_golden():
    """Runs are resumed and compared by their datums, so these must never change."""
    assert modular_addition(ModularConfig(modulus=7)).token_NM["train"][:3].tolist() == (
        [[2, 3, 7, 5], [6, 4, 7, 3], [5, 1, 7, 6]]
    )
    labels = digits(ImagesConfig()).token_NM["train"][:8, -1].tolist()
    assert labels == [4, 5, 3, 8, 2, 5, 8, 0]
    repeated = repeated_sequences(RepeatedConfig(), 47).token_NM["train"]
    assert repeated[0, :6].tolist() == [46, 22, 45, 17, 19, 37]
    assert mazes(MazeConfig(corner=1, anywhere=1, held_out=0)).texts["train"] == [
        "r6c0 r6c1 r6c2 r5c2 r4c2 r4c3 r4c4 r3c4 r2c4 r2c5 r2c6 r1c6 r0c6",
        "r6c0 r5c0 r4c0 r4c1 r4c2 r3c2 r2c2 r1c2",
    ]


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("corpus", "text"),
    [
        ({"kind": "digits"}, "corpus.window: got 35, must be 64, the tokens of a datum of digits."),
        ({"kind": "mnist"}, "corpus.path: got null, must name a file or folder"),
        ({"kind": "digits", "path": "x", "window": 64}, "corpus.path: got 'x', must be null when"),
        (
            {"maze": {"size": 9}},
            "corpus.maze: is set, but corpus.kind is python-reference. Set corpus.kind=maze",
        ),
        (
            {"kind": "digits", "window": 64, "scramble": {"share": 0.5}},
            "corpus.scramble: is set, but corpus.kind is digits, which is no text. Leave it out.",
        ),
        (
            {"kind": "repeated", "path": "x", "window": 63},
            "corpus.path: got 'x', must be null when",
        ),
        (
            {"kind": "repeated", "window": 63, "repeated": {"text_share": 1.5}},
            "corpus.repeated.text_share: got 1.5, must be from 0 to 1.",
        ),
        ({"kind": "maze", "maze": {"size": 6}}, "corpus.maze.size: got 6, must be odd."),
        ({"modular": {"modulus": 1}}, "corpus.modular.modulus: got 1, must be at least 2."),
        ({"images": {"shuffled_labels": 2}}, "corpus.images.shuffled_labels: got 2"),
    ],
)
def test_a_wrong_setting_of_a_task_is_explained(corpus, text):
    with pytest.raises(ConfigError) as caught:
        make_config({"corpus": corpus})
    assert str(caught.value).startswith(text)


def test_a_maze_without_a_short_path_is_one_line():
    config = MazeConfig(size=9, moves=3, corner=1, anywhere=0, held_out=0)
    with pytest.raises(CorpusError, match="none has a path of at most 3 moves"):
        mazes(config)
