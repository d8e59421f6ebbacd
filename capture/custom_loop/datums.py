"""The datums of a custom training loop, as the user describes them, turned into a corpus.

Shapes: N datum, T token, V token of the vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from capture.corpus.datums import Corpus, Datums, Vocabulary
from capture.errors import ConfigError
from capture.format import datum_lengths
from capture.format.corpus_tables import corpus_tables, vocabulary_table
from capture.format.extent import DATUMS
from capture.format.markers import Marker
from capture.shards import encoding as shards
from capture.training.recorder import Recorder

DatumDescriptions = Sequence[str] | Sequence[Sequence[int]] | np.ndarray | torch.Tensor | int | None
"""Names of all datums, their tokens [N, T + 1] or N lists of any length (targets are the tokens one
later), their number, or None: then datums are numbered in the order in which they arrive."""

ONE_FORM = "Tokens must be integers [datums, window + 1], or one list of integers for each datum"


def datum_tables(
    datums: DatumDescriptions, vocabulary: Sequence[str] | None
) -> dict[str, pa.Table]:
    """Return the tables of the run's corpus by key; empty if datums are not described.

    A datum with a name but no tokens counts as one token of its own, so that every analysis of
    tokens works for datums. Raises ``ConfigError`` for tokens that are not valid.
    """
    if datums is None:
        return {}
    if not isinstance(datums, int | np.ndarray | torch.Tensor):
        datums = names_or_tokens(datums)
    if isinstance(datums, np.ndarray | torch.Tensor):
        return corpus_tables(corpus_from_tokens(np.asarray(datums), vocabulary))
    if not isinstance(datums, int) and len(datums) and not is_name(datums[0]):
        return unequal_tables([np.asarray(datum) for datum in datums], vocabulary)
    if vocabulary is not None:
        raise ConfigError("vocabulary", "was given without tokens", "Pass datums as [N, T + 1]")
    names = list(map(str, range(datums) if isinstance(datums, int) else datums))
    if not names:
        raise ConfigError("datums", "is empty, must name at least one datum")
    return corpus_tables(corpus_from_names(names))


def names_or_tokens(datums: Sequence[Any]) -> Sequence[Any] | np.ndarray:
    """Return names as they are, and lists of tokens as one array if they are equally long.

    Raises ``ConfigError`` for datums that are neither names nor lists of at least 2 tokens.
    """
    if all(is_name(datum) for datum in datums):
        return datums
    lengths = [1 if is_name(datum) else len(datum) for datum in datums]
    if min(lengths) < 2:
        problem = f"have {min(lengths)} to {max(lengths)} tokens, must have 2 or more"
        raise ConfigError("datums", problem, ONE_FORM)
    try:
        arrays = [np.asarray(datum) for datum in datums]
        if any(array.ndim != arrays[0].ndim for array in arrays):
            raise ValueError
        return np.stack(arrays) if min(lengths) == max(lengths) else arrays
    except ValueError as error:
        problem = "are neither names nor lists of tokens"
        raise ConfigError("datums", problem, ONE_FORM) from error


def is_name(datum: Any) -> bool:
    """Return whether a datum is described by one name or number, not by a list of tokens."""
    return isinstance(datum, str) or not hasattr(datum, "__len__") or getattr(datum, "ndim", 1) == 0


def corpus_from_tokens(token_NT: np.ndarray, vocabulary: Sequence[str] | None) -> Corpus:
    if token_NT.ndim != 2 or token_NT.dtype.kind not in "iu" or token_NT.shape[1] < 2:
        raise ConfigError("datums", f"got {token_NT.dtype} {token_NT.shape}", ONE_FORM)
    known = vocabulary_of(token_NT.ravel(), token_NT[:, :-1].ravel(), vocabulary)
    token_NT = token_NT.astype(np.int32)
    return Corpus(known, Datums(token_NT[:, :-1], token_NT[:, 1:]), None, None)


def unequal_tables(
    tokens: Sequence[np.ndarray], vocabulary: Sequence[str] | None
) -> dict[str, pa.Table]:
    """Return the tables of a corpus of datums of different length; see ``format.datum_lengths``."""
    for own_T in tokens:
        if own_T.ndim != 1 or own_T.dtype.kind not in "iu":
            raise ConfigError("datums", f"got {own_T.dtype} {own_T.shape}", ONE_FORM)
    inputs_M = np.concatenate([own_T[:-1] for own_T in tokens])
    known = vocabulary_of(np.concatenate(tokens), inputs_M, vocabulary)
    count_V = np.append(known.counts, 0)
    padded = Vocabulary([*known.tokens, datum_lengths.PADDING], count_V, known.joined)
    return {
        "corpus/vocab.parquet": vocabulary_table(padded),
        DATUMS: datum_lengths.datum_table(tokens, padded.tokens, padded.joined),
    }


def vocabulary_of(
    all_M: np.ndarray, inputs_M: np.ndarray, vocabulary: Sequence[str] | None
) -> Vocabulary:
    """Return the vocabulary, with how often each token is an input.

    ``all_M``: all tokens. Raises ``ConfigError`` for one outside the vocabulary.
    """
    least, most = (int(end) for end in (all_M.min(), all_M.max()))
    names = list(map(str, range(most + 1))) if vocabulary is None else list(vocabulary)
    if not 0 <= least <= most < len(names):
        problem = f"has tokens {least} to {most}, the vocabulary 0 to {len(names) - 1}"
        raise ConfigError("datums", problem)
    count_V = np.bincount(inputs_M.astype(np.int64), minlength=len(names))
    return Vocabulary(names, count_V.astype(np.int64))


def corpus_from_names(names: list[str]) -> Corpus:
    distinct, index_N, count_V = np.unique(names, return_inverse=True, return_counts=True)
    token_N1 = index_N.astype(np.int32)[:, None]
    vocabulary = Vocabulary([str(name) for name in distinct], count_V.astype(np.int64))
    return Corpus(vocabulary, Datums(token_N1, token_N1), None, None)


def tokens_per_datum(tables: Mapping[str, pa.Table]) -> int | None:
    """Return the number of tokens of the longest datum; None if datums are not described."""
    return int(datum_lengths.lengths(tables[DATUMS]).max()) if tables else None


def as_ids(ids: Any) -> np.ndarray:
    """Return datum ids by slot, int64 [N]; raises ``ConfigError`` if they are not integers [N]."""
    id_N = ids.detach().cpu().numpy() if isinstance(ids, torch.Tensor) else np.asarray(ids)
    if id_N.ndim != 1 or not len(id_N) or id_N.dtype.kind not in "iu":
        problem = f"got {id_N.dtype} {id_N.shape}, must be the integer ids of the datums, [N]"
        raise ConfigError("recorder.datums", problem)
    return id_N.astype(np.int64)


def next_unused_datum(recorder: Recorder, last: Marker) -> int:
    """Return one more than the largest datum of a run whose datums are numbered as they arrive."""
    if not last.files_of("steps"):
        return 0
    # Numbers given in the order of arrival only grow, so the last segment holds the largest.
    file = last.files_of("steps")[0]
    where = f"{recorder.store.uri}/{file.key}"
    rows = shards.decode(recorder.store.get(file.key), where)
    return 1 + max(max(datums) for datums in rows["datums"].to_pylist())
