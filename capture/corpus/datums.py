"""Text → tokens → vocabulary → datums, and the order in which an epoch visits them.

A split's tokens are one stream. A datum is a window of T tokens that starts at a multiple of T; its
targets are the same stream one token later. Its id is its number among its split's windows, so it
is the same in every epoch and in every run on the same text.

Shapes: N datum, T token, V vocabulary, B batch, S slot.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from capture.corpus.text import Text, basic_english, python_reference, read_path
from capture.corpus.tokenizer import HFTokenizer
from capture.corpus.wikitext import Split, read_wikitext
from capture.errors import ConfigError, CorpusError, at_least

UNKNOWN = "<unk>"
WORDS = "words"


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Which text to learn from, and how it is cut."""

    kind: Literal["python-reference", "wikitext2", "text"] = "python-reference"
    """The reference every Python carries, WikiText-2, or any UTF-8 text."""
    path: str | None = None
    """wikitext2: folder of its files, or null to download; text: a file, or a folder of .txt."""
    tokenizer: str = WORDS
    """words, the study's; or a Hugging Face tokenizer: a folder, or an id on the hub."""
    window: int = 35
    """Tokens per datum."""
    validation_share: float = 0.03
    """Share of the windows, evenly spread, held out for validation; wikitext2 has its own."""
    test_share: float = 0.0
    """Share of the windows held out as test; likewise."""

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


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The tokens of the training text, most frequent first, ties alphabetical; id 0 is <unk>.

    Or those of a Hugging Face tokenizer, in its order.
    """

    tokens: list[str]
    counts: np.ndarray
    """Occurrences in the training text, int64 [V]; for <unk>, how often the text itself says so."""
    joined: Callable[[Sequence[str]], str] = " ".join
    """What tokens that follow each other are as text."""

    @cached_property
    def index(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.tokens)}

    def encode(self, tokens: Iterable[str]) -> np.ndarray:
        """Ids, int32; 0 for a token the training text does not have."""
        find = self.index.get
        return np.fromiter((find(token, 0) for token in tokens), np.int32)


@dataclass(frozen=True, eq=False)
class Datums:
    """The windows of one split. A datum's id is its row; the incomplete last window is left out."""

    token_NT: np.ndarray
    """Inputs, int32."""
    target_NT: np.ndarray
    """The stream one token later, int32."""

    def __len__(self) -> int:
        return len(self.token_NT)


@dataclass(frozen=True, eq=False)
class Corpus:
    """What a run learns from and is measured on; a split that the corpus lacks is None."""

    vocabulary: Vocabulary
    train: Datums
    validation: Datums | None
    test: Datums | None


def load_corpus(config: CorpusConfig, *, batch: int) -> Corpus:
    """Read, tokenise and cut a text; ``CorpusError`` where it cannot fill one batch."""
    tokenizer = None if config.tokenizer == WORDS else HFTokenizer(config.tokenizer)
    streams = read_streams(config, tokenizer)
    datums: dict[Split, Datums]
    if config.kind == "wikitext2":
        vocabulary = vocabulary_of(streams["train"], tokenizer)
        datums = {
            split: cut_windows(vocabulary.encode(tokens), config.window)
            for split, tokens in streams.items()
        }
    else:
        vocabulary, datums = hold_out(streams["train"], config, tokenizer)
    for split, found in datums.items():
        check_size(config, split, len(found), batch=batch)
    return Corpus(vocabulary, datums["train"], datums.get("validation"), datums.get("test"))


def read_streams(
    config: CorpusConfig, tokenizer: HFTokenizer | None = None
) -> dict[Split, list[str]]:
    """The tokens of each split that the corpus has of its own; all as train if it has none."""
    path = None if config.path is None else Path(config.path).expanduser()
    if config.kind == "wikitext2":
        return {split: tokenise(text, tokenizer) for split, text in read_wikitext(path).items()}
    text = python_reference() if path is None else read_path(path)
    return {"train": tokenise(text, tokenizer)}


def tokenise(text: Text, tokenizer: HFTokenizer | None = None) -> list[str]:
    tokens = tokenizer.tokens(text.content) if tokenizer else basic_english(text.content)
    if not tokens:
        raise CorpusError(text.where, "holds no words", "Give a file with text in it")
    return tokens


def hold_out(
    tokens: list[str], config: CorpusConfig, tokenizer: HFTokenizer | None = None
) -> tuple[Vocabulary, dict[Split, Datums]]:
    """Cut one stream into windows and deal them to splits; the vocabulary is of training windows.

    Held-out windows are spread evenly, so that they sample the whole text: the end of a text is one
    more subject, not a measure of the others.
    """
    window, num_windows = config.window, max(len(tokens) - 1, 0) // config.window
    split_W = deal(num_windows, validation=config.validation_share, test=config.test_share)
    spoken = (tokens[w * window : (w + 1) * window] for w in np.flatnonzero(split_W == "train"))
    vocabulary = vocabulary_of(itertools.chain.from_iterable(spoken), tokenizer)
    whole = cut_windows(vocabulary.encode(tokens), window)
    shares: dict[Split, float] = {
        "train": 1.0,
        "validation": config.validation_share,
        "test": config.test_share,
    }
    return vocabulary, {
        split: Datums(whole.token_NT[split_W == split], whole.target_NT[split_W == split])
        for split, share in shares.items()
        if share > 0
    }


def deal(num_windows: int, *, validation: float, test: float) -> np.ndarray:
    """The split of each window, [W]; each split's windows are spread evenly."""
    split_W = np.full(num_windows, "train", dtype="<U10")
    split_W[passes(num_windows, validation)] = "validation"
    rest = np.flatnonzero(split_W == "train")
    split_W[rest[passes(len(rest), test / (1 - validation))]] = "test"
    return split_W


def passes(count: int, share: float) -> np.ndarray:
    """Places w of ``count`` where the whole part of share · w grows, evenly spread, [count]."""
    grown = np.floor(share * np.arange(count + 1) + 1e-9)
    return grown[1:] > grown[:-1]


def check_size(config: CorpusConfig, split: Split, num_datums: int, *, batch: int) -> None:
    """Training text must fill a batch, held-out text a datum: anything less is a mistake."""
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


def vocabulary_of(tokens: Iterable[str], tokenizer: HFTokenizer | None = None) -> Vocabulary:
    """Of the training text, or the tokenizer's with the counts of the training text."""
    if tokenizer is None:
        return build_vocabulary(tokens)
    counter = Counter(tokens)
    counts = np.array([counter[name] for name in tokenizer.names], np.int64)
    return Vocabulary(tokenizer.names, counts, tokenizer.joined)


def build_vocabulary(tokens: Iterable[str]) -> Vocabulary:
    """As torchtext's ``build_vocab_from_iterator`` with ``<unk>`` as its one special token."""
    counter = Counter(tokens)
    unknown = counter.pop(UNKNOWN, 0)
    ranked = sorted(counter.items(), key=lambda item: (-item[1], item[0]))
    names = [UNKNOWN, *(token for token, _ in ranked)]
    return Vocabulary(names, np.array([unknown, *(count for _, count in ranked)], np.int64))


def cut_windows(stream: np.ndarray, window: int) -> Datums:
    """As many whole windows as have a target for their last token."""
    end = (len(stream) - 1) // window * window
    return Datums(stream[:end].reshape(-1, window), stream[1 : end + 1].reshape(-1, window))


def epoch_order(num_datums: int, *, seed: int, epoch: int) -> np.ndarray:
    """The order in which an epoch visits the datums: a permutation, int64 [N].

    Ranks of raw random bits rather than ``Generator.permutation``: numpy promises the same bits in
    every version, but not the same shuffle.
    """
    bits = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(epoch,)))
    return np.argsort(bits.random_raw(num_datums), kind="stable").astype(np.int64)


def batches(order: np.ndarray, batch: int) -> np.ndarray:
    """Datum ids of each step of an epoch, [B, S]; the remainder of the epoch is left out."""
    return order[: len(order) // batch * batch].reshape(-1, batch)
