"""Turn a text or a task into datums.

The tokens of a split are one stream. A datum is a window of T tokens that starts at a multiple of
T. Its targets are the same stream one token later. Its id counts the windows of its split from 0,
so it is the same in every epoch and in every run on the same text.

Shapes: N datum, T token, V vocabulary.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from capture.corpus.config import TASKS, WORDS, CorpusConfig
from capture.corpus.planting import FlipConfig, Planted, flip_labels, plant_tokens
from capture.corpus.tasks.loading import load_task
from capture.corpus.tasks.task import TaskDatums
from capture.corpus.text import Text, basic_english, python_reference, read_path
from capture.corpus.tokenizer import HFTokenizer
from capture.corpus.wikitext import Split, read_wikitext
from capture.errors import CorpusError

UNKNOWN = "<unk>"


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
    scored: int | None = None
    """Number of positions at the end of the window at which the loss counts; None: all."""
    texts: list[str] | None = None
    """A text for each datum; None: its tokens."""

    @property
    def scored_NT(self) -> np.ndarray:
        """Targets of the positions at which the loss counts, int32."""
        return self.target_NT if self.scored is None else self.target_NT[:, -self.scored :]

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
    """What ``corpus.plant``, ``scramble`` and ``flip`` changed; None if nothing."""


def load_corpus(config: CorpusConfig, *, batch: int) -> Corpus:
    """Read a text, tokenize it and cut it into datums.

    Raises ``CorpusError`` if the training text does not fill one batch of ``batch`` datums, or a
    held-out split has no datum.
    """
    task = load_task(config)
    if task is not None:
        return corpus_of_task(task, config, batch=batch)
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


def corpus_of_task(task: TaskDatums, config: CorpusConfig, *, batch: int) -> Corpus:
    """Return the datums of a task; raises ``CorpusError`` as ``load_corpus`` does.

    Datums are held out by ``validation_share`` and ``test_share`` if the task has no splits.
    """
    splits: dict[Split, Datums] = {
        split: Datums(
            token_NM[:, :-1].copy(), token_NM[:, 1:].copy(), config.scored, task.texts.get(split)
        )
        for split, token_NM in task.token_NM.items()
    }
    if splits.keys() == {"train"}:
        splits = hold_out_datums(splits["train"], config)
    for split, found in splits.items():
        check_size(config, split, len(found), batch=batch)
    train, planted = with_flips(splits["train"], task.names, config.flip)
    counts = np.bincount(train.token_NT.ravel(), minlength=len(task.names)).astype(np.int64)
    vocabulary = Vocabulary(task.names, counts)
    return Corpus(vocabulary, train, splits.get("validation"), splits.get("test"), planted)


def with_flips(datums: Datums, names: list[str], flip: FlipConfig) -> tuple[Datums, Planted | None]:
    """Return the datums with wrong labels as configured, and which these are."""
    if not flip.share:
        return datums, None
    old_N = datums.target_NT[:, -1]
    label_N, planted = flip_labels(old_N, flip)
    texts = datums.texts and [  # such as "3 (8 × 8 pixels)": the label comes first
        names[label] + text.removeprefix(names[old])
        for text, old, label in zip(datums.texts, old_N.tolist(), label_N.tolist(), strict=True)
    ]
    target_NT = np.column_stack([datums.target_NT[:, :-1], label_N])
    return replace(datums, target_NT=target_NT, texts=texts), planted


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
    return vocabulary, hold_out_datums(cut_windows(vocabulary.encode(tokens), window), config)


def hold_out_datums(datums: Datums, config: CorpusConfig) -> dict[Split, Datums]:
    """Assign datums to splits, those held out evenly spread; a split without a share is absent."""
    split_W = assign_splits(len(datums), validation=config.validation_share, test=config.test_share)
    shares: dict[Split, float] = {
        "train": 1.0,
        "validation": config.validation_share,
        "test": config.test_share,
    }
    return {
        split: select_datums(datums, split_W == split)
        for split, share in shares.items()
        if share > 0
    }


def select_datums(datums: Datums, chosen_N: np.ndarray) -> Datums:
    """Return the datums that a mask or a list of ids [N] chooses."""
    texts = datums.texts and np.array(datums.texts, object)[chosen_N].tolist()
    return replace(
        datums,
        token_NT=datums.token_NT[chosen_N],
        target_NT=datums.target_NT[chosen_N],
        texts=texts,
    )


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
    if config.kind in TASKS and split == "train":
        lower = f"Lower training.batch to {num_datums} at most, or hold fewer datums out"
        remedy = lower if num_datums else "Hold fewer datums out"
    elif config.kind in TASKS:
        remedy = f"Raise corpus.{split}_share, or set it to 0 to hold nothing out"
    elif split == "train":
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
