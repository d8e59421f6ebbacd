"""The datums of a step, over all ranks: the slots of rank 0 come first, then those of rank 1, ….

Shapes: N datum of the step, by slot.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from capture.custom_loop.checks.unchecked import NUMBERED, Unchecked
from capture.custom_loop.datums import next_unused_datum
from capture.custom_loop.passes.forward_passes import ForwardPass
from capture.errors import ConfigError, RunError
from capture.format.extent import DATUMS
from capture.format.markers import Marker
from capture.training.recorder import Recorder

MAX_SLOTS = 2**15
"""Largest number of datums in a step: slots are stored as int16."""
Claims = list[list[int] | int]
"""The datums of each backward pass of a step, or their number if the loop gave no ids."""


@dataclass(frozen=True)
class StepDatums:
    """The datums of a step, over all ranks."""

    all_N: np.ndarray
    """The datum in each slot, int32."""
    own: slice
    """The slots of this rank."""

    @property
    def own_N(self) -> np.ndarray:
        """The datum in each slot of this rank."""
        return self.all_N[self.own]


def claims_of(passes: Sequence[ForwardPass]) -> Claims:
    """Return the datums of each pass; raises ``ConfigError`` for a wrong number of ids."""
    found: Claims = []
    for each in passes:
        count = each.num_datums()
        if each.datum_N is not None and len(each.datum_N) != count:
            problem = f"got {len(each.datum_N)} datums for a backward pass of {count}"
            raise ConfigError("recorder.datums", problem)
        found.append(count if each.datum_N is None else each.datum_N.tolist())
    return found


class KnownDatums:
    """The datums that a run has, and the numbers of those that come without ids."""

    def __init__(self, num_datums: int | None, next_datum: int, unchecked: Unchecked) -> None:
        """``num_datums``: None if the run does not say which datums it has.

        ``next_datum``: the first number for datums without ids, which ``unchecked`` counts.
        """
        self.num_datums = num_datums
        self.next_datum = next_datum
        self.unchecked = unchecked

    @classmethod
    def of_run(
        cls,
        tables: Mapping[str, pa.Table],
        recorder: Recorder,
        last: Marker,
        unchecked: Unchecked,
    ) -> "KnownDatums":
        """Return those of a run; ``last``: marker of its last segment, ``tables``: its corpus."""
        if tables:
            return cls(tables[DATUMS].num_rows, 0, unchecked)
        return cls(None, next_unused_datum(recorder, last), unchecked)

    def require(self, datum_N: np.ndarray) -> None:
        """Raise ``ConfigError`` for a datum that the run does not have."""
        least, most = int(datum_N.min()), int(datum_N.max())
        end = 2**31 if self.num_datums is None else self.num_datums
        if not 0 <= least <= most < end:
            problem = f"got {least} to {most}, the run's datums are 0 to {end - 1}"
            remedy = "Call recorder.datums(ids) before each forward pass"
            raise ConfigError("recorder.datums", problem, remedy)

    def of_step(self, claims: Sequence[Claims], rank: int, where: str) -> StepDatums:
        """Return the datums of a step, and number those that came without ids.

        ``claims``: of all ranks; ``rank``: this one. Raises ``RunError`` for too many datums.
        """
        pieces, ends, begin = [np.empty(0, np.int64)], [0], self.next_datum
        for own in claims:
            for claim in own:
                if isinstance(claim, int):
                    pieces.append(np.arange(claim) + self.next_datum)
                    self.next_datum += claim
                else:
                    pieces.append(np.array(claim, np.int64))
            ends.append(sum(map(len, pieces)))
        all_N = np.concatenate(pieces)
        if len(all_N) > MAX_SLOTS:
            raise RunError(where, f"has {len(all_N)} datums, must be at most {MAX_SLOTS}")
        self.require(all_N)
        if rank == 0:
            self.unchecked.add(NUMBERED, self.next_datum - begin)
        return StepDatums(all_N.astype(np.int32), slice(ends[rank], ends[rank + 1]))
