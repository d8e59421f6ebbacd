"""Which datums went into the model: found by their tokens, or compared with what the loop says.

A run that holds the tokens of its datums can look up each row of the model's input among them. A
shuffled loader then needs no ids, and ids that contradict the input are refused.

Shapes: N datum of a batch, M datum of the run, T position of the window.
"""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from torch import Tensor

from capture.errors import ConfigError

LOG = logging.getLogger(__name__)
NUMBERED = (
    "%s: %d rows were numbered in the order in which they came, so a datum that came twice has two "
    "numbers. Pass datums=tokens, or call recorder.datums(ids)"
)


class DatumIdentity:
    """The tokens of a run's datums, to be looked up."""

    def __init__(self, tables: Mapping[str, pa.Table]) -> None:
        """``tables``: of the run's corpus; without tokens of several positions nothing is known."""
        self.token_MT = np.zeros((0, 0), np.int64)
        """All tokens of each datum, the last target included; -1 behind a shorter datum."""
        self.by_width: dict[int, dict[bytes, list[int]]] = {}
        """Number of positions → the bytes of so many tokens → the datums that begin with them."""
        self.num_numbered = 0
        """Datums that could not be looked up and were numbered in the order in which they came."""
        if tables:
            self.token_MT = all_tokens(tables["corpus/datums.parquet"])

    def of_batch(self, inputs: Sequence[Tensor], given_N: np.ndarray | None) -> np.ndarray | None:
        """Return the datum in each row of a batch, int64 [N].

        As given by the loop, or by the tokens of the input; None if neither is known. Raises
        ``ConfigError`` if a row holds the tokens of another datum than was given.
        """
        found = next(filter(None, map(self.look_up, inputs)), None)
        if given_N is None:
            if found is None or not all(found):
                return None
            return one_of_each(found)
        for row, (candidates, given) in enumerate(zip(found or (), given_N, strict=False)):
            if candidates and int(given) not in candidates:
                problem = (
                    f"got datum {given} for row {row} of the input, which holds the tokens of "
                    f"datum {candidates[0]}"
                )
                remedy = "Give ids in the order of the batch, or none: they are found by the tokens"
                raise ConfigError("recorder.datums", problem, remedy)
        return given_N

    def warn_of_numbers(self, uri: str) -> None:
        """Say at the end of a recording how many rows could not be looked up."""
        if self.num_numbered:
            LOG.warning(NUMBERED, uri, self.num_numbered)

    def look_up(self, x: Tensor) -> list[list[int]] | None:
        """Return the datums whose tokens each row holds; None if the tensor is not of tokens."""
        width = self.token_MT.shape[1]
        if x.dim() != 2 or x.is_floating_point() or not 2 <= x.shape[1] <= width:
            return None
        if x.shape[1] not in self.by_width:
            rows: dict[bytes, list[int]] = defaultdict(list)
            for datum, token_T in enumerate(self.token_MT[:, : x.shape[1]]):
                rows[token_T.tobytes()].append(datum)
            self.by_width[x.shape[1]] = dict(rows)
        known = self.by_width[x.shape[1]]
        token_NT = x.detach().cpu().numpy().astype(np.int64)
        found = [known.get(token_T.tobytes(), []) for token_T in token_NT]
        return found if any(found) else None


def one_of_each(candidates: Sequence[Sequence[int]]) -> np.ndarray:
    """Return one datum for each row; rows with the same tokens get different datums if possible."""
    taken: dict[int, int] = defaultdict(int)
    chosen = []
    for own in candidates:
        chosen.append(own[taken[own[0]] % len(own)])
        taken[own[0]] += 1
    return np.array(chosen, np.int64)


def all_tokens(datums: pa.Table) -> np.ndarray:
    """Return the tokens of all datums, int64 [M, T + 1]; none if datums have one token, a name."""
    rows = datums["tokens"].to_pylist()
    if max(map(len, rows), default=0) < 2:
        return np.zeros((0, 0), np.int64)
    width = max(map(len, rows)) + 1
    token_MT = np.full((len(rows), width), -1, np.int64)
    for own_T, row, target in zip(token_MT, rows, datums["last_target"].to_pylist(), strict=True):
        own_T[: len(row)] = row
        own_T[len(row)] = target
    return token_MT
