"""Sentences with their syntax, from a file in the CoNLL-U format of Universal Dependencies."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from capture.corpus.text import basic_english
from capture.corpus.tokenizer import HFTokenizer
from capture.errors import CorpusError

COLUMNS = 10
FORMAT = "Wanted 10 columns between tabs, as in CoNLL-U: ID FORM … HEAD DEPREL DEPS MISC"
UNKNOWN = "<unk>"


@dataclass(frozen=True)
class Edge:
    """A dependency between two words of a sentence, numbered from 0."""

    dependent: int
    head: int
    relation: str
    """Relation without its subtype: ``nsubj`` for ``nsubj:pass``."""


@dataclass(frozen=True)
class Sentence:
    """The token ids of each word, and the dependencies between words."""

    words: Sequence[Sequence[int]]
    edges: Sequence[Edge]

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.words))


Words = Callable[[str, bool], list[int]]
"""Function from a word, and whether a space stands before it, to its token ids; maybe none."""


def read_dependencies(path: str, encode: Words, window: int) -> list[Sentence]:
    """Return the sentences that are no longer than the model's window, of two words or more.

    Words without tokens are left out with their dependencies. Raises ``CorpusError`` for a file
    that cannot be read, a line of another form, or a file without such sentences.
    """
    try:
        text = Path(path).expanduser().read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(path, f"cannot be read: {error}") from error
    blocks: list[list[tuple[str, list[str]]]] = [[]]
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            blocks.append([])
        elif not line.startswith("#"):
            columns = line.split("\t")
            if len(columns) != COLUMNS:
                raise CorpusError(f"{path}:{number}", f"has {len(columns)} columns", FORMAT)
            blocks[-1].append((f"{path}:{number}", columns))
    sentences = [parsed(block, encode) for block in blocks if block]
    kept = [each for each in sentences if each.edges and each.num_tokens <= window]
    if not kept:
        problem = f"has no sentence with dependencies of at most {window} tokens"
        raise CorpusError(path, problem, f"It has {len(sentences)} sentences")
    return kept


def parsed(block: list[tuple[str, list[str]]], encode: Words) -> Sentence:
    """Return one sentence; raises ``CorpusError`` for a head that is no number or not there.

    Lines of several words (1-2) and of words that are left out (1.1) stand for no word of the text.
    """
    lines = [(where, columns) for where, columns in block if columns[0].isdecimal()]
    numbers: dict[str, int] = {}
    words: list[list[int]] = []
    space = False
    for _, columns in lines:
        tokens = encode(columns[1], space)
        if tokens:
            numbers[columns[0]] = len(words)
            words.append(tokens)
        space = "SpaceAfter=No" not in columns[9].split("|")
    known, edges = {columns[0] for _, columns in lines}, []
    for where, columns in lines:
        own, head, relation = columns[0], columns[6], columns[7].partition(":")[0]
        if head != "0" and head not in known:
            raise CorpusError(where, f"has the head {head!r}, which is no word of the sentence")
        if own in numbers and head in numbers:
            edges.append(Edge(numbers[own], numbers[head], relation))
    return Sentence(words, edges)


def words_of_run(tokens: Sequence[str]) -> Words:
    """Return the encoder of a run whose tokens are words; unknown ones are ``<unk>`` if it has it,
    else left out."""
    ids = {token: number for number, token in enumerate(tokens)}

    def encode(word: str, space: bool) -> list[int]:
        found = (ids.get(part, ids.get(UNKNOWN)) for part in basic_english(word))
        return [number for number in found if number is not None]

    return encode


def words_of_library(tokenizer: HFTokenizer) -> Words:
    """Return the encoder of a tokenizer of the hub."""
    ids = {name: number for number, name in enumerate(tokenizer.names)}

    def encode(word: str, space: bool) -> list[int]:
        return [ids[name] for name in tokenizer.tokens(f" {word}" if space else word)]

    return encode
