"""Read inputs and targets of datums from a table of ``capture.shards.schema.DATUMS``.

Shapes: N datum, T position, M any number of tokens.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from analysis.run.scan import REMEDY
from capture.errors import ShardError
from capture.format.datum_lengths import PADDING, lengths, padded_inputs, padded_targets


def read_inputs(table: pa.Table, where: str, *, window: int, tokens: Sequence[str]) -> np.ndarray:
    """Return input tokens, int32 [N, T].

    ``tokens``: the vocabulary. Only a run whose vocabulary ends with ``<padding>`` may have datums
    shorter than the window, with that token beyond their end. Raises ``ShardError`` for datums of
    another length, or tokens outside the vocabulary.
    """
    check_tokens(np.array(table["tokens"].combine_chunks().flatten()), where, len(tokens))
    length_N = lengths(table)
    shortest = 1 if tokens[-1:] == [PADDING] else window
    if len(length_N) and not shortest <= length_N.min() <= length_N.max() == window:
        raise ShardError(where, f"has datums that are not of {window} tokens", REMEDY)
    return padded_inputs(table, window, len(tokens) - 1)


def read_targets(
    table: pa.Table, token_NT: np.ndarray, where: str, *, num_tokens: int
) -> np.ndarray:
    """Return targets, the inputs shifted by one, int32 [N, T].

    Raises ``ShardError`` for tokens outside the vocabulary.
    """
    check_tokens(table["last_target"].to_numpy(), where, num_tokens)
    return padded_targets(table, token_NT, num_tokens - 1)


def check_tokens(token_M: np.ndarray, where: str, num_tokens: int) -> None:
    """Raise ``ShardError`` for a token outside the vocabulary."""
    if len(token_M) and not 0 <= token_M.min() <= token_M.max() < num_tokens:
        problem = f"has tokens {token_M.min()} to {token_M.max()}, not 0 to {num_tokens - 1}"
        raise ShardError(where, problem, REMEDY)
