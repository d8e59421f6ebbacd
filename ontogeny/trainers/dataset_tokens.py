"""Read the datums of a trainer's dataset: their tokens, or their number.

Only datasets whose rows are stored are read: asking any other for a row may draw random numbers.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

LOG = logging.getLogger(__name__)
COLUMN = "input_ids"
LENGTHS = "seq_lengths"
"""Column in which TRL stores the lengths of the documents that it packs into a row."""
TOO_SHORT = (
    "The rows of the dataset have no tokens that could be told apart ({}), so datums are numbers. "
    "Pass datums=tokens for analyses of tokens"
)


def describe_datums(dataset: Any) -> list[np.ndarray] | int | None:
    """Return the tokens of all datums, their number, or None for a stream without length."""
    try:
        number = len(dataset)
    except TypeError:
        return None
    rows, lengths = stored_tokens(dataset), document_lengths(dataset)
    number = number if lengths is None else sum(map(len, lengths))
    if rows is None:
        return number
    tokens = [np.asarray(row) for row in rows]
    if lengths is not None:
        tokens = documents(tokens, lengths)
    problem = next(filter(None, map(problem_of, tokens)), "")
    if problem:
        LOG.warning(TOO_SHORT.format(problem))
        return number
    return tokens


def stored_tokens(dataset: Any) -> Sequence[Any] | None:
    """Return the column of tokens of a dataset whose rows are stored; None if there is none."""
    if is_table(dataset):
        if COLUMN not in dataset.column_names:
            return None
        return dataset.select_columns([COLUMN]).with_format("numpy")[:][COLUMN]
    if not isinstance(dataset, list | tuple) or not dataset:
        return None
    if not all(isinstance(row, Mapping) and COLUMN in row for row in dataset):
        return None
    return [row[COLUMN] for row in dataset]


def document_lengths(dataset: Any) -> Sequence[Sequence[int]] | None:
    """Return the lengths of the documents in each row; None if rows are not packed of them."""
    if not is_table(dataset) or LENGTHS not in dataset.column_names:
        return None
    return dataset.select_columns([LENGTHS])[:][LENGTHS]


def document_ends(dataset: Any) -> np.ndarray | None:
    """Return for each row the number of documents in it and all rows before, behind a 0.

    None if the rows are not packed of documents.
    """
    lengths = document_lengths(dataset)
    return None if lengths is None else np.cumsum([0, *map(len, lengths)])


def datums_of_rows(rows: Sequence[int], ends: np.ndarray | None) -> Sequence[int]:
    """Return the datums in rows of a dataset: the rows, or by ``ends`` the documents in them."""
    if ends is None:
        return rows
    return [datum for row in rows for datum in range(ends[row], ends[row + 1])]


def documents(rows: Sequence[np.ndarray], lengths: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Return the tokens of each document of packed rows."""
    return [
        own_T
        for row_T, own in zip(rows, lengths, strict=True)
        for own_T in np.split(row_T, np.cumsum(own)[:-1])
    ]


def is_table(dataset: Any) -> bool:
    """Return whether this is a ``datasets.Dataset`` without a transformation of its rows."""
    if type(dataset).__module__.split(".")[0] != "datasets" or not hasattr(dataset, "column_names"):
        return False
    return dataset.format["type"] != "custom"


def problem_of(token_T: np.ndarray) -> str:
    """Say why a row of a dataset is not a datum of tokens; empty if it is one."""
    if token_T.ndim != 1 or token_T.dtype.kind not in "iu":
        return f"a row is {token_T.dtype} {token_T.shape}"
    return f"a row has {len(token_T)}" if len(token_T) < 2 else ""


def token_names(tokenizer: Any, tokens: Any) -> list[str] | None:
    """Return the text of each token by a tokenizer's vocabulary.

    A number in the vocabulary without a text is shown as "<number>". None if the tokens go beyond
    the vocabulary, so that it may be another's.
    """
    convert = getattr(tokenizer, "convert_ids_to_tokens", None)
    if convert is None or not isinstance(tokens, list):
        return None
    most = max(int(token_T.max()) for token_T in tokens)
    # A tokenizer made on the spot may leave numbers out, so that its last one is not its length.
    known = tokenizer.get_vocab().values() if hasattr(tokenizer, "get_vocab") else ()
    size = max(len(tokenizer), 1 + max(known, default=-1))
    if most >= size:
        return None
    names = convert(range(size))
    return [f"<{number}>" if name is None else name for number, name in enumerate(names)]
