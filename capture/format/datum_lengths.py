"""Datums of different length: tables of their tokens, and those tables as rectangular arrays.

A table holds each datum's own tokens. Arrays [N, T] are as wide as the longest datum. Positions
beyond the end of a datum hold the token ``<padding>``, which such a run has as the last token of
its vocabulary, in addition to those of the user.

Shapes: N datum, T position of the longest datum, V token of the vocabulary.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
from pyarrow import compute

from capture.shards.schema import DATUMS

PADDING = "<padding>"


def datum_table(
    tokens: Sequence[np.ndarray], names: list[str], joined: Callable[[Sequence[str]], str]
) -> pa.Table:
    """Return the table of datums, each given by its inputs and its last target, at least 2 tokens.

    ``names``: the text of each token; ``joined``: makes one text of several.
    """
    columns = {
        "datum": np.arange(len(tokens)),
        "tokens": [own_T[:-1] for own_T in tokens],
        "last_target": [int(own_T[-1]) for own_T in tokens],
        "text": [joined([names[token] for token in own_T[:-1]]) for own_T in tokens],
    }
    return pa.table(columns).cast(DATUMS)


def lengths(table: pa.Table) -> np.ndarray:
    """Return the number of positions of each datum, int64 [N]."""
    return compute.list_value_length(table["tokens"]).to_numpy().astype(np.int64)


def padded_inputs(table: pa.Table, window: int, padding: int) -> np.ndarray:
    """Return the input tokens, int32 [N, T]; ``padding`` beyond the end of a datum."""
    token_NT = np.full((len(table), window), padding, np.int32)
    token_NT[within(lengths(table), window)] = table["tokens"].combine_chunks().flatten()
    return token_NT


def padded_targets(table: pa.Table, token_NT: np.ndarray, padding: int) -> np.ndarray:
    """Return the targets, the inputs shifted by one, int32 [N, T]; ``token_NT`` is padded."""
    end_N1 = np.full((len(table), 1), padding, np.int32)
    target_NT = np.hstack([token_NT[:, 1:], end_N1])
    target_NT[np.arange(len(table)), lengths(table) - 1] = table["last_target"].to_numpy()
    return target_NT


def within(length_N: np.ndarray, window: int) -> np.ndarray:
    """Return whether each position is one of its datum, bool [N, T]."""
    return np.arange(window) < length_N[:, None]
