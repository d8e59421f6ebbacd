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
from capture.format.corpus_tables import corpus_tables
from capture.format.markers import Marker
from capture.shards import encoding as shards
from capture.training.recorder import Recorder

DatumDescriptions = Sequence[str] | Sequence[Sequence[int]] | np.ndarray | torch.Tensor | int | None
"""Names of all datums, their tokens [N, T + 1] (targets are the tokens one later), their number, or
None: then datums are numbered in the order in which they arrive."""


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
    if vocabulary is not None:
        raise ConfigError("vocabulary", "was given without tokens", "Pass datums as [N, T + 1]")
    names = list(map(str, range(datums))) if isinstance(datums, int) else list(datums)
    if not names:
        raise ConfigError("datums", "is empty, must name at least one datum")
    return corpus_tables(corpus_from_names(names))


def names_or_tokens(datums: Sequence[Any]) -> Sequence[str] | np.ndarray:
    """Return names as they are and lists of tokens as an array.

    Raises ``ConfigError`` for datums that differ in their number of tokens.
    """
    if all(is_name(datum) for datum in datums):
        return datums
    lengths = [1 if is_name(datum) else len(datum) for datum in datums]
    if min(lengths) != max(lengths):
        problem = f"have {min(lengths)} to {max(lengths)} tokens, must all have as many"
        remedy = "Pad them to [datums, window + 1], or give one name for each datum"
        raise ConfigError("datums", problem, remedy)
    try:
        return np.stack([np.asarray(datum) for datum in datums])
    except ValueError as error:
        problem = "are neither names nor lists of tokens"
        raise ConfigError(
            "datums", problem, "Tokens must be integers [datums, window + 1]"
        ) from error


def is_name(datum: Any) -> bool:
    """Return whether a datum is described by one name or number, not by a list of tokens."""
    return isinstance(datum, str) or not hasattr(datum, "__len__") or getattr(datum, "ndim", 1) == 0


def corpus_from_tokens(token_NT: np.ndarray, vocabulary: Sequence[str] | None) -> Corpus:
    if token_NT.ndim != 2 or token_NT.dtype.kind not in "iu" or token_NT.shape[1] < 2:
        problem = f"got {token_NT.dtype} {token_NT.shape}"
        raise ConfigError("datums", problem, "Tokens must be integers [datums, window + 1]")
    least, most = (int(end) for end in (token_NT.min(), token_NT.max()))
    names = list(map(str, range(most + 1))) if vocabulary is None else list(vocabulary)
    if not 0 <= least <= most < len(names):
        problem = f"has tokens {least} to {most}, the vocabulary 0 to {len(names) - 1}"
        raise ConfigError("datums", problem)
    count_V = np.bincount(token_NT[:, :-1].ravel(), minlength=len(names))
    token_NT = token_NT.astype(np.int32)
    datums = Datums(token_NT[:, :-1], token_NT[:, 1:])
    return Corpus(Vocabulary(names, count_V.astype(np.int64)), datums, None, None)


def corpus_from_names(names: list[str]) -> Corpus:
    distinct, index_N, count_V = np.unique(names, return_inverse=True, return_counts=True)
    token_N1 = index_N.astype(np.int32)[:, None]
    vocabulary = Vocabulary([str(name) for name in distinct], count_V.astype(np.int64))
    return Corpus(vocabulary, Datums(token_N1, token_N1), None, None)


def tokens_per_datum(tables: Mapping[str, pa.Table]) -> int | None:
    """Return the number of tokens of a datum; None if datums are not described."""
    if not tables:
        return None
    return len(tables["corpus/datums.parquet"]["tokens"][0])


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
