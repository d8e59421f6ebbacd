"""A concept in examples: prompts with their completions, and texts with their labels.

A file has one JSON object a line: ``{"prompt": …, "completion": …}`` or
``{"text": …, "label": …}``.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from analysis.run.names import token_id
from capture.corpus.text import basic_english
from capture.corpus.tokenizer import HFTokenizer
from capture.errors import ConfigError, CorpusError

Encode = Callable[[str, str], list[int]]
"""Function from a text and its place, for errors, to token ids."""
LEAST_OF_A_LABEL = 5
"""Texts of each label, as many as a probe's folds."""
PAIR, LABELLED = {"prompt", "completion"}, {"text", "label"}


@dataclass(frozen=True)
class Completion:
    """A completion and the tokens before it."""

    before: list[int]
    """Examples in context, if any, and the prompt."""
    tokens: list[int]


@dataclass(frozen=True, eq=False)
class Concept:
    """The examples of a file."""

    completions: Sequence[Completion] = ()
    texts: Sequence[list[int]] = ()
    """Token ids of the labelled texts."""
    labels: Sequence[str] = field(default=())
    """Label of each text."""


def read_concept(path: str, encode: Encode, window: int, shots: int) -> Concept:
    """Read a file of examples.

    ``shots``: number of other examples in front of each prompt, those that follow it in the file.
    Raises ``CorpusError`` for a file that cannot be read, a line of another form, or an example
    that is longer than the model's ``window``.
    """
    rows = read_rows(path)
    pairs = [
        (encode(row["prompt"], where), encode(row["completion"], where))
        for where, row in rows
        if row.keys() == PAIR
    ]
    if pairs and shots >= len(pairs):
        problem = f"got {shots}, but {path} has {len(pairs)} prompts"
        raise ConfigError("--shots", problem, "Choose fewer")
    completions = [in_context(pairs, number, shots) for number in range(len(pairs))]
    labelled = [
        (where, encode(row["text"], where), row["label"])
        for where, row in rows
        if row.keys() == LABELLED
    ]
    require_labels(path, [label for _, _, label in labelled])
    lengths = [len(each.before) + len(each.tokens) - 1 for each in completions]
    lengths += [len(tokens) for _, tokens, _ in labelled]
    if max(lengths) > window:
        problem = f"has an example of {max(lengths)} tokens, the model takes {window}"
        raise CorpusError(path, problem, "Shorten it, or use fewer --shots")
    return Concept(completions, [row[1] for row in labelled], [row[2] for row in labelled])


def in_context(pairs: Sequence[tuple[list[int], list[int]]], number: int, shots: int) -> Completion:
    """Return one completion behind the examples that follow it in the file, in a circle."""
    others = [pairs[(number + 1 + shot) % len(pairs)] for shot in range(shots)]
    before = [token for prompt, completion in others for token in (*prompt, *completion)]
    prompt, completion = pairs[number]
    return Completion([*before, *prompt], completion)


def read_rows(path: str) -> list[tuple[str, dict[str, str]]]:
    """Return the objects of a file with their places; raises ``CorpusError``."""
    try:
        lines = Path(path).expanduser().read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(path, f"cannot be read: {error}") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise CorpusError(f"{path}:{number}", f"is not JSON: {error}") from error
        right = isinstance(row, dict) and row.keys() in (PAIR, LABELLED)
        if not right or not all(isinstance(value, str) for value in row.values()):
            problem = "must be an object of texts with prompt and completion, or text and label"
            raise CorpusError(f"{path}:{number}", problem)
        rows.append((f"{path}:{number}", row))
    if not rows:
        raise CorpusError(path, "holds no examples", 'As in {"prompt": "a b", "completion": "c"}')
    return rows


def require_labels(path: str, labels: Sequence[str]) -> None:
    """Raise ``CorpusError`` unless there are no labels, or two or more with enough texts each."""
    counts = Counter(labels)
    if labels and (len(counts) < 2 or min(counts.values()) < LEAST_OF_A_LABEL):
        shown = ", ".join(f"{label}: {count}" for label, count in counts.most_common(4))
        problem = f"has too few labelled texts ({shown})"
        raise CorpusError(path, problem, f"Give two labels, and {LEAST_OF_A_LABEL} texts of each")


def word_encoder(tokens: Sequence[str]) -> Encode:
    """Return the encoder of a run whose tokens are words."""

    def encode(text: str, where: str) -> list[int]:
        try:
            found = [token_id(tokens, word) for word in basic_english(text)]
        except ConfigError as error:
            raise ConfigError(where, f"{error.where} {error.problem}", error.remedy) from error
        return require_tokens(found, where)

    return encode


def library_encoder(tokenizer: HFTokenizer) -> Encode:
    """Return the encoder of a tokenizer of the hub."""
    ids = {name: number for number, name in enumerate(tokenizer.names)}

    def encode(text: str, where: str) -> list[int]:
        return require_tokens([ids[name] for name in tokenizer.tokens(text)], where)

    return encode


def require_tokens(found: list[int], where: str) -> list[int]:
    if not found:
        raise CorpusError(where, "has a text without tokens", "Give at least one")
    return found
