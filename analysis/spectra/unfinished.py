"""The Gram matrix of the pieces that are done, stored so that a killed job goes on from there.

``analysis/spectrum/…/unfinished/QUESTION.safetensors`` holds the sum over the first pieces and
their number. A job that asks the same question of the same run takes it up. It is deleted when the
tables are written.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from analysis.jobs.question import Question
from analysis.jobs.tables import table_set
from analysis.run.run import Run
from analysis.spectra.pieces import Piece
from capture.errors import ShardError
from capture.store import Store

FOLDER = "unfinished"
JOB = "spectrum"


@dataclass(frozen=True, eq=False)
class UnfinishedGram:
    """The stored part of one sum."""

    store: Store
    key: str

    @classmethod
    def of(
        cls, run: Run, question: Question, pieces: Sequence[Piece], name: str
    ) -> "UnfinishedGram":
        """Return that of a question on a run, whose tables will have this name."""
        parts = [[part.unit, part.first, part.end] for piece in pieces for part in piece]
        lasts = [run.steps_done, run.committed.last.checksum]
        asked = json.dumps([question.options, parts, lasts], sort_keys=True)
        digest = hashlib.sha256(asked.encode()).hexdigest()[:16]
        folder = f"analysis/{table_set(JOB, name)}/{FOLDER}"
        return cls(run.tables, f"{folder}/{digest}.safetensors")

    def read(self, steps: int) -> tuple[int, np.ndarray]:
        """Return the number of pieces that are done and the sum of their Gram matrices.

        Raises ``ShardError`` if the file is damaged.
        """
        if not self.store.exists(self.key):
            return 0, np.zeros((steps, steps))
        try:
            found = load(self.store.get(self.key))
            done, gram_SS = int(found["pieces"][0]), found["gram"]
            if gram_SS.shape != (steps, steps):
                raise ValueError(f"its matrix is {gram_SS.shape}, not {(steps, steps)}")
        except (SafetensorError, KeyError, IndexError, ValueError) as error:
            where, remedy = f"{self.store.uri}/{self.key}", "Delete it; it is computed again"
            raise ShardError(where, f"is not readable: {error}", remedy) from error
        return done, gram_SS

    def keep(self, done: int, gram_SS: np.ndarray) -> None:
        self.store.put(self.key, save({"gram": gram_SS, "pieces": np.array([done])}))


def discard_unfinished(run: Run, name: str) -> None:
    """Delete what is stored of unfinished jobs with this name."""
    for key in run.tables.keys(f"analysis/{table_set(JOB, name)}/{FOLDER}"):
        run.tables.delete(key)
