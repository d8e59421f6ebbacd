"""Which datums went into the model: found by their tokens, or compared with what the loop says.

A run that holds the tokens of its datums can look up each row of the model's input among them. A
shuffled loader then needs no ids, and ids that contradict the input are refused. A row may hold all
tokens of a datum, or all but the last target. Behind them, it may repeat one token as padding.

Shapes: N datum of a batch, M datum of the run, T position of the window, W width of an input.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa
from torch import Tensor

from capture.custom_loop.checks.unchecked import AMBIGUOUS, Unchecked
from capture.custom_loop.model_inputs import is_tokens
from capture.custom_loop.packing.documents import Documents
from capture.errors import ConfigError
from capture.format.extent import DATUMS

NUM_WIDTHS = 8
"""Widths of inputs for which tables of the beginnings of datums are kept."""

Candidates = list[dict[int, int]]
"""The datums that each row of an input may hold, each with the number of its tokens there."""


class DatumIdentity:
    """The tokens of a run's datums, to be looked up."""

    def __init__(self, tables: Mapping[str, pa.Table], unchecked: Unchecked) -> None:
        """``tables``: of the run's corpus; without tokens of several positions nothing is known.

        ``unchecked`` takes the rows whose datum is not certain.
        """
        self.unchecked = unchecked
        self.tokens = all_tokens(tables[DATUMS]) if tables else []
        """All tokens of each datum, the last target included."""
        self.whole = by_bytes(enumerate(self.tokens))
        """All tokens of a datum, as bytes → the datums."""
        self.inputs = by_bytes((datum, own_T[:-1]) for datum, own_T in enumerate(self.tokens))
        """All tokens but the last target, as bytes → the datums."""
        self.by_width: dict[int, dict[bytes, list[int]]] = {}
        """Width → so many tokens, as bytes → the datums that begin with them and are longer."""

    def of_batch(
        self,
        inputs: Sequence[Tensor],
        given_N: np.ndarray | None,
        documents: Documents | None = None,
    ) -> np.ndarray | None:
        """Return the datum in each row of a batch, or in each of its documents, int64 [N].

        As given by the loop, or by the tokens of the input; None if neither is known. Raises
        ``ConfigError`` if a row holds the tokens of another datum than was given, or holds a datum
        at other positions.
        """
        looked_up = [self.look_up(x, documents) for x in inputs]
        found = in_common([own for own in looked_up if own is not None])
        if self.tokens and documents is None and not (found and all(found)):
            for x in filter(is_tokens, inputs):
                self.require_at_start(x, found)
        if given_N is None:
            if found is None or not all(found):
                return None
            self.unchecked.add(AMBIGUOUS, sum(map(self.differ, map(list, found))))
            return one_of_each([longest(candidates) for candidates in found])
        for row, (candidates, given) in enumerate(zip(found or (), given_N, strict=False)):
            if candidates and int(given) not in candidates:
                part = "row" if documents is None else "document"
                problem = (
                    f"got datum {given} for {part} {row} of the input, which holds the tokens of "
                    f"datum {longest(candidates)[0]}"
                )
                remedy = "Give ids in the order of the batch, or none: they are found by the tokens"
                raise ConfigError("recorder.datums", problem, remedy)
        return given_N

    def differ(self, datums: Sequence[int]) -> bool:
        """Return whether the datums do not all have the same tokens."""
        first_T = self.tokens[datums[0]]
        return any(not np.array_equal(self.tokens[datum], first_T) for datum in datums[1:])

    def holds_rows(self, inputs: Sequence[Tensor]) -> bool:
        """Return whether each row of an input holds the tokens of a datum."""
        found = map(self.look_up, inputs)
        return any(all(own) for own in found if own is not None)

    # --- rows of an input -------------------------------------------------------------------------

    def look_up(self, x: Tensor, documents: Documents | None = None) -> Candidates | None:
        """Return the datums whose tokens each row, or each document, holds.

        None if the tensor is not of tokens.
        """
        if documents is not None:
            return self.look_up_documents(x, documents)
        if not self.tokens or not is_tokens(x) or x.shape[1] < 2:
            return None
        token_NW = x.detach().cpu().numpy().astype(np.int64)
        begun = self.beginnings(token_NW.shape[1])
        # A loop gives either all tokens of its datums or all but the last targets.
        ways = [
            [begins(token_W, begun) | ends_in_padding(token_W, known) for token_W in token_NW]
            for known in (self.whole, self.inputs)
        ]
        fitting = [way for way in ways if all(way)] or ways
        found = [merged(rows) for rows in zip(*fitting, strict=True)]
        return found if any(found) else None

    def look_up_documents(self, x: Tensor, documents: Documents) -> Candidates | None:
        """Return the datums whose tokens, with or without the last target, each document holds."""
        if not self.tokens or x.is_floating_point():
            return None
        parts = [documents.of_output(x, slot) for slot in range(len(documents))]
        if any(part is None for part in parts):
            return None
        keys = [
            part.detach().cpu().numpy().astype(np.int64).tobytes()
            for part in parts
            if part is not None
        ]
        found = [
            dict.fromkeys((*self.whole.get(key, ()), *self.inputs.get(key, ())), len(key) // 8)
            for key in keys
        ]
        return found if any(found) else None

    def beginnings(self, width: int) -> dict[bytes, list[int]]:
        """Return the first ``width`` tokens, as bytes → the datums with more than ``width`` + 1.

        Datums with fewer are known as a whole.
        """
        if width not in self.by_width:
            if len(self.by_width) >= NUM_WIDTHS:
                self.by_width.clear()
            self.by_width[width] = by_bytes(
                (datum, own_T[:width])
                for datum, own_T in enumerate(self.tokens)
                if len(own_T) > width + 1
            )
        return self.by_width[width]

    def require_at_start(self, x: Tensor, found: Candidates | None) -> None:
        """Raise ``ConfigError`` if a row that was not found holds a datum behind a repeated token.

        Positions in such a row are not those of the datum.
        """
        token_NW = x.detach().cpu().numpy().astype(np.int64)
        for row, token_W in enumerate(token_NW):
            if (found and row < len(found) and found[row]) or leading(token_W) == len(token_W):
                continue
            for start in range(1, min(leading(token_W), len(token_W) - 2) + 1):
                rest = token_W[start:].tobytes()
                if datums := self.whole.get(rest) or self.inputs.get(rest):
                    problem = (
                        f"row {row} of the input holds datum {datums[0]} from position {start} on, "
                        "so that its positions are not those of the datum"
                    )
                    remedy = "Pad datums at their end, and pass all tokens that the model sees"
                    raise ConfigError("datums", problem, remedy)


def begins(token_W: np.ndarray, begun: Mapping[bytes, list[int]]) -> dict[int, int]:
    """Return the datums that begin with a row and are longer."""
    return dict.fromkeys(begun.get(token_W.tobytes(), ()), len(token_W))


def ends_in_padding(token_W: np.ndarray, known: Mapping[bytes, list[int]]) -> dict[int, int]:
    """Return the datums that a row holds, with or without one repeated token behind them."""
    first = len(token_W) - leading(token_W[::-1])
    ends = range(max(first, 1), len(token_W) + 1)
    return {datum: end for end in ends for datum in known.get(token_W[:end].tobytes(), ())}


def merged(rows: Sequence[dict[int, int]]) -> dict[int, int]:
    """Return all datums of several dictionaries, ascending, each with the largest number."""
    datums = sorted(set().union(*rows))
    return {datum: max(row.get(datum, 0) for row in rows) for datum in datums}


def longest(candidates: Mapping[int, int]) -> list[int]:
    """Return the datums of which a row holds most tokens."""
    most = max(candidates.values())
    return [datum for datum, end in candidates.items() if end == most]


def leading(token_W: np.ndarray) -> int:
    """Return how many tokens at the start are equal to the first."""
    return int(np.argmin(np.append(token_W == token_W[0], False)))


def in_common(found: Sequence[Candidates]) -> Candidates | None:
    """Return the datums that all inputs of a batch name, or those of the first where they differ.

    None if no input is of tokens.
    """
    if not found or any(len(rows) != len(found[0]) for rows in found):
        return found[0] if found else None
    shared = [
        {datum: end for datum, end in rows[0].items() if all(datum in row for row in rows)}
        for rows in zip(*found, strict=True)
    ]
    return [own or first for own, first in zip(shared, found[0], strict=True)]


def one_of_each(candidates: Sequence[Sequence[int]]) -> np.ndarray:
    """Return one datum for each row; rows with the same tokens get different datums if possible."""
    taken: dict[int, int] = defaultdict(int)
    chosen = []
    for own in candidates:
        chosen.append(own[taken[own[0]] % len(own)])
        taken[own[0]] += 1
    return np.array(chosen, np.int64)


def by_bytes(tokens: Iterable[tuple[int, np.ndarray]]) -> dict[bytes, list[int]]:
    """Return a table from tokens, as bytes, to the datums given with them."""
    found: dict[bytes, list[int]] = defaultdict(list)
    for datum, token_T in tokens:
        found[token_T.tobytes()].append(datum)
    return dict(found)


def all_tokens(datums: pa.Table) -> list[np.ndarray]:
    """Return the tokens of each datum, int64; none if datums have one token, a name."""
    rows = datums["tokens"].to_pylist()
    if max(map(len, rows), default=0) < 2:
        return []
    last = datums["last_target"].to_pylist()
    return [np.array([*row, target], np.int64) for row, target in zip(rows, last, strict=True)]
