"""Tokens and texts of a run's training datums, from its table ``DATUMS`` of ``capture.shards``.

Shapes: N datum, T position, M any number of tokens.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa

from analysis.run import custom_loop
from analysis.run.scan import REMEDY
from analysis.run.stored_run import StoredRun
from capture.errors import ShardError
from capture.format.datum_lengths import PADDING, lengths, padded_inputs, padded_targets


class TokenWindows(StoredRun):
    """The tokens of ``Run``."""

    @cached_property
    def tokens(self) -> list[str]:
        """The vocabulary, indexed by token id."""
        return self.vocabulary_table["token"].to_pylist()

    @cached_property
    def texts(self) -> pa.Array:
        """Text of each training datum; its number if it has no text."""
        if self.has_numbered_datums:
            return custom_loop.number_texts(self.num_datums)
        return self.datum_table("train")["text"].combine_chunks()

    @cached_property
    def token_NT(self) -> np.ndarray:
        """Input token of each training datum and position, int32 [N, T]."""
        table = self.datum_table("train")
        where, window = self.corpus_shard("datums").where, self.config.corpus.window
        return read_inputs(table, where, window=window, tokens=self.tokens)

    @cached_property
    def length_N(self) -> np.ndarray | None:
        """Number of positions of each training datum, int64; None if all have as many."""
        length_N = lengths(self.datum_table("train"))
        return None if (length_N == self.config.corpus.window).all() else length_N

    @cached_property
    def target_NT(self) -> np.ndarray:
        """Token to be predicted at each training datum and position, int32 [N, T]."""
        table, where = self.datum_table("train"), self.corpus_shard("datums").where
        return read_targets(table, self.token_NT, where, num_tokens=self.num_tokens)

    @property
    def has_one_position(self) -> bool:
        """Whether rows have position 0 alone: a perceptron reads all of an image at once, and its
        target, the last one, is the image's label."""
        return not self.from_custom_loop and self.config.model.kind == "mlp"

    @property
    def recorded_target_NT(self) -> np.ndarray:
        """Target of each position that rows can have, int32 [N, T]; of images [N, 1], the label."""
        return self.target_NT[:, -1:] if self.has_one_position else self.target_NT

    def datum_tokens(self, datum: int) -> np.ndarray:
        """Return the input tokens of a training datum and its last target, without padding."""
        end = self.token_NT.shape[1] if self.length_N is None else self.length_N[datum]
        return np.append(self.token_NT[datum, :end], self.target_NT[datum, end - 1])


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
