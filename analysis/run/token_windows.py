"""Read inputs and targets of datums from a table of ``capture.shards.schema.DATUMS``.

Shapes: N datum, T position, M any number of tokens.
"""

import numpy as np
import pyarrow as pa
from pyarrow import compute

from analysis.run.scan import REMEDY
from capture.errors import ShardError


def read_inputs(table: pa.Table, where: str, *, window: int, num_tokens: int) -> np.ndarray:
    """Return input tokens, [N, T].

    Raises ``ShardError`` for datums of another length, or tokens outside the vocabulary.
    """
    token_M = np.array(table["tokens"].combine_chunks().flatten())
    check_tokens(token_M, where, num_tokens)
    lengths = compute.list_value_length(table["tokens"]).unique().to_pylist()
    if lengths not in ([], [window]):
        raise ShardError(where, f"has datums that are not of {window} tokens", REMEDY)
    return token_M.reshape(len(table), window)


def read_targets(
    table: pa.Table, token_NT: np.ndarray, where: str, *, num_tokens: int
) -> np.ndarray:
    """Return targets, the inputs shifted by one, [N, T].

    Raises ``ShardError`` for tokens outside the vocabulary.
    """
    last_N = table["last_target"].to_numpy()
    check_tokens(last_N, where, num_tokens)
    return np.hstack([token_NT[:, 1:], last_N[:, None]])


def check_tokens(token_M: np.ndarray, where: str, num_tokens: int) -> None:
    """Raise ``ShardError`` for a token outside the vocabulary."""
    if len(token_M) and not 0 <= token_M.min() <= token_M.max() < num_tokens:
        problem = f"has tokens {token_M.min()} to {token_M.max()}, not 0 to {num_tokens - 1}"
        raise ShardError(where, problem, REMEDY)
