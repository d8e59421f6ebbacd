"""What somebody's own training loop learns from: the datums, as far as they were told.

Shapes: N datum, T token.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from capture.corpus.datums import Corpus, Datums, Vocabulary
from capture.errors import ConfigError
from capture.format.corpus_tables import corpus_tables

Told = Sequence[str] | np.ndarray | torch.Tensor | int | None
"""Names of all datums, their tokens [N, T + 1] (targets are the tokens one later), how many there
are, or nothing: then they are numbered as they come."""


def tables_of(datums: Told, vocabulary: Sequence[str] | None) -> dict[str, pa.Table]:
    """The corpus of the run, by key; empty where nothing was told.

    A datum that has a name and no tokens is one token by itself, so that what can be asked of
    tokens can be asked of datums. Raises ``ConfigError`` for tokens that are none.
    """
    if datums is None:
        return {}
    if isinstance(datums, np.ndarray | torch.Tensor):
        return corpus_tables(of_tokens(np.asarray(datums), vocabulary))
    if vocabulary is not None:
        raise ConfigError("vocabulary", "was given without tokens", "Give datums as [N, T + 1]")
    names = list(map(str, range(datums))) if isinstance(datums, int) else list(datums)
    if not names:
        raise ConfigError("datums", "is empty, must name at least one datum")
    return corpus_tables(of_names(names))


def of_tokens(token_NT: np.ndarray, vocabulary: Sequence[str] | None) -> Corpus:
    if token_NT.ndim != 2 or token_NT.dtype.kind not in "iu" or token_NT.shape[1] < 2:
        problem = f"got {token_NT.dtype} {token_NT.shape}"
        raise ConfigError("datums", problem, "Tokens are whole numbers [datums, window + 1]")
    least, most = (int(end) for end in (token_NT.min(), token_NT.max()))
    names = list(map(str, range(most + 1))) if vocabulary is None else list(vocabulary)
    if not 0 <= least <= most < len(names):
        problem = f"has tokens {least} to {most}, the vocabulary 0 to {len(names) - 1}"
        raise ConfigError("datums", problem)
    count_V = np.bincount(token_NT[:, :-1].ravel(), minlength=len(names))
    token_NT = token_NT.astype(np.int32)
    datums = Datums(token_NT[:, :-1], token_NT[:, 1:])
    return Corpus(Vocabulary(names, count_V.astype(np.int64)), datums, None, None)


def of_names(names: list[str]) -> Corpus:
    distinct, place_N, count_V = np.unique(names, return_inverse=True, return_counts=True)
    token_N1 = place_N.astype(np.int32)[:, None]
    vocabulary = Vocabulary([str(name) for name in distinct], count_V.astype(np.int64))
    return Corpus(vocabulary, Datums(token_N1, token_N1), None, None)


def window_of(tables: Mapping[str, pa.Table]) -> int | None:
    """Tokens of a datum; None where datums are only numbered."""
    if not tables:
        return None
    return len(tables["corpus/datums.parquet"]["tokens"][0])


def as_ids(ids: Any) -> np.ndarray:
    """Datum ids by slot, int64 [N]; raises ``ConfigError`` for what are none."""
    id_N = ids.detach().cpu().numpy() if isinstance(ids, torch.Tensor) else np.asarray(ids)
    if id_N.ndim != 1 or not len(id_N) or id_N.dtype.kind not in "iu":
        problem = f"got {id_N.dtype} {id_N.shape}, must be the numbers of a batch's datums, [N]"
        raise ConfigError("recorder.datums", problem)
    return id_N.astype(np.int64)
