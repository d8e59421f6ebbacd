"""Finished segments of a sweep, stored so that a killed job resumes where it was.

After each segment, its steps go to ``analysis/influence/…/unfinished/QUESTION-STEP.safetensors``,
and then the state of the sweep (the adjoint) to ``…/QUESTION-state.safetensors``, which names the
step where it stands. Segments that do not depend on each other need no state. A job that asks the
same question of the same run takes up what it finds. The files are deleted when the tables are
written. Each is one object, so it is there or it is not.

Shapes: Q query, S step of a segment, N datum of a step (slot), T position.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from analysis.influence.sweeps import BackwardSweep, SweepStep
from analysis.run.run import Run
from capture.errors import ShardError
from capture.store import Store

FOLDER = "unfinished"
REMEDY = "Delete it; it is computed again"


@dataclass(frozen=True, eq=False)
class FinishedSegments:
    """The stored part of one sweep."""

    store: Store
    folder: str
    digest: str
    """Names the question and the run."""

    @classmethod
    def of(cls, run: Run, job: str, question: Mapping[str, Any]) -> "FinishedSegments":
        """Return those of a job on a run; ``question``: plain JSON that determines every number."""
        asked = json.dumps([question, run.steps_done, run.committed.last.checksum], sort_keys=True)
        digest = hashlib.sha256(asked.encode()).hexdigest()[:16]
        return cls(run.tables, f"analysis/{job}/{FOLDER}", digest)

    def run(
        self, sweep: BackwardSweep, segments: list[range], max_bytes: int
    ) -> Iterator[SweepStep]:
        """Yield the steps of all segments, last first: stored ones first, then those computed.

        Steps before the one with which the sweep ends are left out.
        """
        pending = list(segments)
        yield from self.resume(sweep, pending)
        while pending and not sweep.ended:
            steps = pending.pop()
            done = []
            for found in sweep.steps(steps, max_bytes):
                done.append(found)
                yield found
            if pending and not sweep.ended:
                self.keep(sweep, done)

    def run_apart(
        self,
        compute: Callable[[Sequence[range]], Iterator[list[SweepStep]]],
        segments: Sequence[range],
    ) -> Iterator[SweepStep]:
        """Like ``run``, for segments that do not depend on each other.

        ``compute`` returns the steps of each of some segments, last first, in the order given.
        """
        backward = list(reversed(segments))
        stored = {steps.start for steps in backward if self.is_stored(steps.start)}
        computed = compute([steps for steps in backward if steps.start not in stored])
        for steps in backward:
            if steps.start in stored:
                yield from self.stored_steps(steps.start)
                continue
            done = next(computed)
            self.keep_steps(done)
            yield from done

    def is_stored(self, first_step: int) -> bool:
        return self.store.exists(self.key(str(first_step)))

    def resume(self, sweep: BackwardSweep, pending: list[range]) -> Iterator[SweepStep]:
        """Yield stored steps, and take their segments out of ``pending``."""
        if not self.store.exists(self.key("state")):
            return
        state = self.read("state")
        first_step, data = int(state["step"][0]), state["state"].tobytes()
        finished = [steps for steps in pending if steps.start >= first_step]
        if not finished or finished[0].start != first_step:
            return
        sweep.resume(data, f"{self.store.uri}/{self.key('state')}")
        for steps in reversed(finished):
            pending.remove(steps)
            yield from self.stored_steps(steps.start)

    def keep(self, sweep: BackwardSweep, done: list[SweepStep]) -> None:
        """Store the steps of a segment, and then the state before it."""
        self.keep_steps(done)
        first_step = done[-1].step
        state = np.frombuffer(sweep.encode(), np.uint8)
        self.store.put(self.key("state"), save({"step": np.array([first_step]), "state": state}))

    def keep_steps(self, done: list[SweepStep]) -> None:
        """Store the steps of a segment."""
        arrays = {
            "step": np.array([found.step for found in done]),
            "datum": np.stack([found.datum_N for found in done]),
            "influence": np.stack([found.influence_QNT for found in done]),
            "unit": np.stack([found.unit_QNU for found in done]),
        }
        for name in done[0].columns:
            arrays[f"column/{name}"] = np.stack([found.columns[name] for found in done])
        self.store.put(self.key(str(done[-1].step)), save(arrays))

    def stored_steps(self, first_step: int) -> Iterator[SweepStep]:
        """Yield the stored steps of the segment that begins there, last first."""
        found = self.read(str(first_step))
        columns = {k.partition("/")[2]: own for k, own in found.items() if k.startswith("column/")}
        for s, step in enumerate(found["step"].tolist()):
            yield SweepStep(
                step,
                found["datum"][s],
                found["influence"][s],
                found["unit"][s],
                {name: own[s] for name, own in columns.items()},
            )

    def read(self, name: str) -> dict[str, np.ndarray]:
        """Return a stored file's arrays; raise ``ShardError`` if it is damaged."""
        key = self.key(name)
        try:
            return load(self.store.get(key))
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise ShardError(
                f"{self.store.uri}/{key}", f"is not readable: {error}", REMEDY
            ) from error

    def key(self, name: str) -> str:
        return f"{self.folder}/{self.digest}-{name}.safetensors"

    def delete(self) -> None:
        """Delete what is stored of unfinished sweeps of this set of tables."""
        for key in self.store.keys(self.folder):
            self.store.delete(key)
