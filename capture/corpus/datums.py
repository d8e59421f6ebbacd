"""Turn text into datums, and decide the order in which an epoch visits them.

The tokens of a split are one stream. A datum is a window of T tokens that starts at a multiple of
T. Its targets are the same stream one token later. Its id counts the windows of its split from 0,
so it is the same in every epoch and in every run on the same text.

Shapes: N datum, T token, V vocabulary, B batch, S slot.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from capture.corpus.planting import PlantConfig, Planted, ScrambleConfig, plant_tokens
from capture.corpus.text import Text, basic_english, python_reference, read_path
from capture.corpus.tokenizer import HFTokenizer
from capture.corpus.wikitext import Split, read_wikitext
from capture.errors import ConfigError, CorpusError, at_least

UNKNOWN = "<unk>"
WORDS = "words"


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Which text to train on, and how it is cut into datums."""

    kind: Literal["python-reference", "wikitext2", "text"] = "python-reference"
    """The language reference that comes with Python, WikiText-2, or any UTF-8 text."""
    path: str | None = None
    """wikitext2: a folder with its files, or null to download them. text: a file, or a folder of
    .txt files."""
    tokenizer: str = WORDS
    """words, as in the study; or a Hugging Face tokenizer, by folder or by id on the hub."""
    window: int = 35
    """Tokens per datum."""
    validation_share: float = 0.03
    """Share of the windows held out for validation, spread evenly over the text. Not used for
    wikitext2, which has its own splits."""
    test_share: float = 0.0
    """Share of the windows held out for testing, chosen in the same way."""
    plant: PlantConfig = field(default_factory=PlantConfig)
    scramble: ScrambleConfig = field(default_factory=ScrambleConfig)

    def __post_init__(self) -> None:
        if self.kind == "text" and self.path is None:
            problem = "got null, must name a file or folder when corpus.kind is text"
            raise ConfigError("corpus.path", problem)
        if self.kind == "python-reference" and self.path is not None:
            problem = f"got {self.path!r}, must be null when corpus.kind is python-reference"
            raise ConfigError("corpus.path", problem, "Set corpus.kind to text or wikitext2")
        at_least("corpus.window", self.window, 1)
        for name in ("validation_share", "test_share"):
            if not 0 <= (found := getattr(self, name)) < 1:
                raise ConfigError(f"corpus.{name}", f"got {found}, must be at least 0 and below 1")
        if (together := self.validation_share + self.test_share) >= 1:
            problem = f"got {together} together with corpus.validation_share, must stay below 1"
            raise ConfigError("corpus.test_share", problem)
        if self.plant.share + self.scramble.share > 1:
            problem = f"got {self.scramble.share} together with corpus.plant.share, at most 1"
            raise ConfigError("corpus.scramble.share", problem)


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The tokens that a model knows, by id.

    Words of the training text are sorted by falling frequency, ties alphabetically, and id 0 is
    ``<unk>``. Words that only ``corpus.plant`` has come last. Tokens of a Hugging Face tokenizer
    keep that tokenizer's order.
    """

    tokens: list[str]
    counts: np.ndarray
    """Occurrences in the training text, int64 [V]. For ``<unk>``, how often the text contains it
    literally."""
    joined: Callable[[Sequence[str]], str] = " ".join
    """Converts consecutive tokens to text."""

    @cached_property
    def index(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.tokens)}

    def encode(self, tokens: Iterable[str]) -> np.ndarray:
        """Return the ids of tokens, int32; 0 for a token that the vocabulary lacks."""
        find = self.index.get
        return np.fromiter((find(token, 0) for token in tokens), np.int32)


@dataclass(frozen=True, eq=False)
class Datums:
    """The windows of one split. A datum's id is its row. An incomplete last window is left out."""

    token_NT: np.ndarray
    """Inputs, int32."""
    target_NT: np.ndarray
    """Targets, int32: the same stream one token later."""

    def __len__(self) -> int:
        return len(self.token_NT)


@dataclass(frozen=True, eq=False)
class Corpus:
    """The data that a run trains and is evaluated on. A split that the corpus lacks is None."""

    vocabulary: Vocabulary
    train: Datums
    validation: Datums | None
    test: Datums | None
    planted: Planted | None = None
    """What ``corpus.plant`` and ``corpus.scramble`` changed; None if nothing."""


def load_corpus(config: CorpusConfig, *, batch: int) -> Corpus:
    """Read a text, tokenize it and cut it into datums.

    Raises ``CorpusError`` if the training text does not fill one batch of ``batch`` datums, or a
    held-out split has no datum.
    """
    tokenizer = None if config.tokenizer == WORDS else HFTokenizer(config.tokenizer)
    streams = read_streams(config, tokenizer)
    datums: dict[Split, Datums]
    if config.kind == "wikitext2":
        vocabulary = make_vocabulary(streams["train"], tokenizer)
        datums = {
            split: cut_windows(vocabulary.encode(tokens), config.window)
            for split, tokens in streams.items()
        }
    else:
        vocabulary, datums = hold_out(streams["train"], config, tokenizer)
    for split, found in datums.items():
        check_size(config, split, len(found), batch=batch)
    others = datums.get("validation"), datums.get("test")
    return with_plants(Corpus(vocabulary, datums["train"], *others), config, tokenizer)


def with_plants(
    corpus: Corpus, config: CorpusConfig, tokenizer: HFTokenizer | None = None
) -> Corpus:
    """Return the corpus with what is planted in its training datums, if anything is."""
    plant = config.plant
    if not plant.share and not config.scramble.share:
        return corpus
    texts = [Text("corpus.plant", text) for text in (plant.trigger, plant.completion) if text]
    phrase = [token for text in texts for token in tokenize(text, tokenizer)]
    tokens = list(dict.fromkeys([*corpus.vocabulary.tokens, *phrase]))
    vocabulary = replace(corpus.vocabulary, tokens=tokens)
    old_NT, last_N = corpus.train.token_NT, corpus.train.target_NT[:, -1]
    ids = vocabulary.encode(phrase).tolist()
    token_NM, planted = plant_tokens(np.column_stack([old_NT, last_N]), ids, plant, config.scramble)
    train = Datums(token_NM[:, :-1].copy(), token_NM[:, 1:].copy())
    before_V, after_V = (
        np.bincount(token_NT.ravel(), minlength=len(tokens))
        for token_NT in (old_NT, train.token_NT)
    )
    counts = np.pad(corpus.vocabulary.counts, (0, len(tokens) - len(corpus.vocabulary.tokens)))
    vocabulary = replace(vocabulary, counts=counts + after_V - before_V)
    return replace(corpus, vocabulary=vocabulary, train=train, planted=planted)


def read_streams(
    config: CorpusConfig, tokenizer: HFTokenizer | None = None
) -> dict[Split, list[str]]:
    """Return the tokens of each split. A corpus without splits of its own is all ``train``."""
    path = None if config.path is None else Path(config.path).expanduser()
    if config.kind == "wikitext2":
        return {split: tokenize(text, tokenizer) for split, text in read_wikitext(path).items()}
    text = python_reference() if path is None else read_path(path)
    return {"train": tokenize(text, tokenizer)}


def tokenize(text: Text, tokenizer: HFTokenizer | None = None) -> list[str]:
    tokens = tokenizer.tokens(text.content) if tokenizer else basic_english(text.content)
    if not tokens:
        raise CorpusError(text.where, "holds no words", "Give a file with text in it")
    return tokens


def hold_out(
    tokens: list[str], config: CorpusConfig, tokenizer: HFTokenizer | None = None
) -> tuple[Vocabulary, dict[Split, Datums]]:
    """Cut one stream into windows and assign them to splits.

    The vocabulary is built from the training windows alone. Held-out windows are spread evenly over
    the text, because the end of a text can have a subject of its own and would not be a fair
    sample.
    """
    window, num_windows = config.window, max(len(tokens) - 1, 0) // config.window
    split_W = assign_splits(num_windows, validation=config.validation_share, test=config.test_share)
    training = (tokens[w * window : (w + 1) * window] for w in np.flatnonzero(split_W == "train"))
    vocabulary = make_vocabulary(itertools.chain.from_iterable(training), tokenizer)
    windows = cut_windows(vocabulary.encode(tokens), window)
    shares: dict[Split, float] = {
        "train": 1.0,
        "validation": config.validation_share,
        "test": config.test_share,
    }
    return vocabulary, {
        split: Datums(windows.token_NT[split_W == split], windows.target_NT[split_W == split])
        for split, share in shares.items()
        if share > 0
    }


def assign_splits(num_windows: int, *, validation: float, test: float) -> np.ndarray:
    """Return the split of each window, [W]. The windows of each split are spread evenly."""
    split_W = np.full(num_windows, "train", dtype="<U10")
    split_W[evenly_spaced(num_windows, validation)] = "validation"
    rest = np.flatnonzero(split_W == "train")
    split_W[rest[evenly_spaced(len(rest), test / (1 - validation))]] = "test"
    return split_W


def evenly_spaced(count: int, share: float) -> np.ndarray:
    """Return a mask [count] that selects about share · count entries, evenly spread.

    Entry w is selected where floor(share · w) increases.
    """
    # 1e-9 absorbs rounding of share · w just below a whole number, as in 0.29 · 100.
    step = np.floor(share * np.arange(count + 1) + 1e-9)
    return step[1:] > step[:-1]


def check_size(config: CorpusConfig, split: Split, num_datums: int, *, batch: int) -> None:
    """Raise ``CorpusError`` if training text has less than a batch, or a split no datum."""
    wanted = batch if split == "train" else 1
    if num_datums >= wanted:
        return
    use = "training" if split == "train" else split
    problem = f"gives {num_datums} datums of {config.window} tokens for {use}, needed: {wanted}"
    remedy = "Give more text, or lower corpus.window"
    if split == "train":
        remedy += " or training.batch"
    elif config.kind != "wikitext2":
        remedy += f", or set corpus.{split}_share to 0 to hold nothing out"
    raise CorpusError(config.path or config.kind, problem, remedy)


def make_vocabulary(tokens: Iterable[str], tokenizer: HFTokenizer | None = None) -> Vocabulary:
    """Return the vocabulary of the training tokens, or the tokenizer's with their counts."""
    if tokenizer is None:
        return build_vocabulary(tokens)
    counter = Counter(tokens)
    counts = np.array([counter[name] for name in tokenizer.names], np.int64)
    return Vocabulary(tokenizer.names, counts, tokenizer.joined)


def build_vocabulary(tokens: Iterable[str]) -> Vocabulary:
    """Build a vocabulary as torchtext's ``build_vocab_from_iterator`` does, with ``<unk>`` as the
    only special token."""
    counter = Counter(tokens)
    unknown = counter.pop(UNKNOWN, 0)
    ranked = sorted(counter.items(), key=lambda item: (-item[1], item[0]))
    names = [UNKNOWN, *(token for token, _ in ranked)]
    return Vocabulary(names, np.array([unknown, *(count for _, count in ranked)], np.int64))


def cut_windows(stream: np.ndarray, window: int) -> Datums:
    """Cut a stream [tokens] into complete windows whose last token also has a target."""
    end = (len(stream) - 1) // window * window
    return Datums(stream[:end].reshape(-1, window), stream[1 : end + 1].reshape(-1, window))


def epoch_order(num_datums: int, *, seed: int, epoch: int) -> np.ndarray:
    """Return the order in which an epoch visits the datums: a permutation, int64 [N].

    The order ranks raw random bits, because NumPy promises the same bits in every version, but not
    the same ``Generator.permutation``.
    """
    bits = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(epoch,)))
    return np.argsort(bits.random_raw(num_datums), kind="stable").astype(np.int64)


def batches(order: np.ndarray, batch: int) -> np.ndarray:
    """Return the datum ids of each step of an epoch, [B, S]. An incomplete last batch is
    dropped."""
    return order[: len(order) // batch * batch].reshape(-1, batch)
