"""Open a run and ask it things: its configuration, its tables, its weights, its shifts.

Only what a marker vouches for is read. Tables come as pandas DataFrames with the columns of
``capture.schema``, where each column is described.

Shapes: N datum, T position, V token of the vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa

from analysis.scan import Shard, read_all
from analysis.shifts import Whole, tabulate, wanted_datums, wanted_parameters, wanted_steps
from capture import checkpoint
from capture.config import Config
from capture.errors import RunError, UnitError
from capture.factors import choose_units
from capture.gradients import Layout
from capture.markers import File, Marker, read_segments, require_start
from capture.model import LanguageModel, fresh_model
from capture.provenance import read_run, read_run_config
from capture.schema import DATUMS, EVALUATIONS, OUTLIERS, STEPS, VOCABULARY
from capture.store import DEFAULT, Store
from capture.store_config import StoreConfig

WHEN = pa.schema([STEPS.field(name) for name in ("step", "epoch", "batch")])
Split = Literal["train", "validation", "test"]


def open_run(uri: str, store: StoreConfig = DEFAULT) -> "Run":
    """The run at a folder or prefix, as it stands now; ``store`` is for object stores.

    Raises ``RunError`` where there is none or a newer version made it, ``ShardError`` where its
    markers or ``run.yaml`` are damaged.
    """
    place = Store(uri, store)
    start = require_start(place)
    return Run(place, read_run_config(place), read_run(place), start, tuple(read_segments(place)))


@dataclass(frozen=True, eq=False)
class Run:
    """What was committed of a run when it was opened."""

    store: Store
    config: Config
    provenance: dict[str, Any]
    """``run.yaml``: configuration, versions, device, git commit, time."""
    start: Marker
    segments: tuple[Marker, ...]

    @property
    def uri(self) -> str:
        return self.store.uri

    @property
    def steps_done(self) -> int:
        """Steps that are committed; the last of them is one less."""
        return self.segments[-1].end_step if self.segments else 0

    @property
    def num_steps(self) -> int:
        """Steps that the finished run has."""
        return self.config.training.epochs * (self.num_datums // self.config.training.batch)

    @cached_property
    def num_datums(self) -> int:
        """Training datums."""
        return self.corpus_shard("datums").rows

    @cached_property
    def num_tokens(self) -> int:
        """Tokens of the vocabulary."""
        return self.corpus_shard("vocab").rows

    @cached_property
    def layout(self) -> Layout:
        """The captured units, their shapes and order."""
        units = choose_units(self.blank_model(), self.config.capture.units)
        return Layout.of(units)

    # --- tables -----------------------------------------------------------------------------------

    def steps(self) -> pd.DataFrame:
        """One row a step: learning rate, clip, loss (nats per token), datums by slot, …"""
        return read_all(self.shards("steps"), STEPS).to_pandas()

    def evaluations(self) -> pd.DataFrame:
        """One row an epoch and held-out split: loss (nats per token) and perplexity."""
        return read_all(self.shards("evaluations"), EVALUATIONS).to_pandas()

    def vocabulary(self) -> pd.DataFrame:
        """token_id, token, and its count in the training text."""
        return self.vocabulary_table.to_pandas()

    def datums(self, split: Split = "train") -> pd.DataFrame:
        """datum, tokens (ids), last_target, text; raises ``RunError`` for a split the run lacks."""
        return self.datum_table(split).to_pandas()

    @cached_property
    def tokens(self) -> list[str]:
        """The vocabulary by token id."""
        return self.vocabulary_table["token"].to_pylist()

    @cached_property
    def texts(self) -> pa.Array:
        """Text of each training datum."""
        return self.datum_table("train")["text"].combine_chunks()

    @cached_property
    def token_NT(self) -> np.ndarray:
        """Inputs of the training datums, int32."""
        table = self.datum_table("train")
        token_M = np.array(table["tokens"].combine_chunks().flatten())
        return token_M.reshape(len(table), -1)

    @cached_property
    def target_NT(self) -> np.ndarray:
        """Targets of the training datums, int32: the inputs one later."""
        last_N1 = self.datum_table("train")["last_target"].to_numpy()[:, None]
        return np.hstack([self.token_NT[:, 1:], last_N1])

    # --- shifts and weights -----------------------------------------------------------------------

    def shifts(
        self,
        unit: str | Sequence[str] | None = None,
        index: Whole | None = None,
        steps: range | None = None,
        datum: Whole | None = None,
    ) -> pd.DataFrame:
        """The recorded shifts that suit every condition, in the order in which they happened.

        ``index`` is flat (row-major) and needs ``unit``. The columns are those of the study's first
        table, then the rest:

        - epoch, batch: when, both from 0; datum_ix: the datum's slot in the batch
        - unit (categorical), index: which parameter
        - diff, abs_diff: by how much the datum changed it, learning rate and clipping included
        - datum: the datum's text (categorical)
        - step (from 0 over the run), datum_id, position: where in the window the largest
          contribution to the shift arises

        Reads only the row groups that can hold such rows. Raises ``UnitError`` for a unit or index
        that was not captured, ``RunError`` for steps or datums that the run lacks.
        """
        self.require_shards("outliers")
        wanted: dict[str, Sequence[Any]] = {}
        if steps is not None:
            wanted["step"] = steps = wanted_steps(self.uri, steps, self.steps_done)
        if datum is not None:
            wanted["datum"] = wanted_datums(self.uri, datum, self.num_datums)
        if unit is not None:
            wanted |= wanted_parameters(self.layout, unit, index)
        elif index is not None:
            raise UnitError("index", f"got {index} without a unit", "Say which unit it indexes")
        rows = read_all(self.shards("outliers", steps), OUTLIERS, wanted)
        when = read_all(self.shards("steps", steps), WHEN)
        return tabulate(rows, when, self.texts)

    def model(self, step: int | None = None) -> LanguageModel:
        """The model after ``step`` updates (by default all that are committed), for evaluation.

        Raises ``RunError`` if no checkpoint was made there.
        """
        step = self.steps_done if step is None else step
        kept = [0, *(segment.end_step for segment in self.segments)]
        if step not in kept:
            near = ", ".join(str(k) for k in sorted(sorted(kept, key=lambda k: abs(k - step))[:3]))
            problem = f"has no checkpoint after {step} steps; the nearest are after {near}"
            raise RunError(self.uri, problem)
        model = self.blank_model()
        checkpoint.restore(model, checkpoint.read_checkpoint(self.store, step))
        return model.eval().requires_grad_(False)

    # --- files ------------------------------------------------------------------------------------

    def shards(self, kind: str, steps: range | None = None) -> list[Shard]:
        """Committed files of one kind, in order; with ``steps``, of segments that have any."""
        return [
            self.shard(file, segment)
            for segment in self.segments
            if steps is None or overlap(steps, segment)
            for file in segment.files_of(kind)
        ]

    def require_shards(self, kind: str) -> list[Shard]:
        """All files of one kind; raises ``RunError`` if nothing is committed yet."""
        shards = self.shards(kind)
        if not shards:
            problem = "holds no committed segment yet"
            raise RunError(self.uri, problem, "Let it train on: ontogeny capture … --resume")
        return shards

    def shard(self, file: File, marker: Marker) -> Shard:
        return Shard(self.store, file, marker.first_step, marker.end_step)

    def corpus_shard(self, name: str) -> Shard:
        """A table of the corpus; raises ``RunError`` if the run has none of this name."""
        key = f"corpus/{name}.parquet"
        for file in self.start.files_of("corpus"):
            if file.key == key:
                return self.shard(file, self.start)
        raise RunError(self.uri, f"has no {key}")

    def datum_table(self, split: Split) -> pa.Table:
        shard = self.corpus_shard("datums" if split == "train" else split)
        return shard.table(DATUMS.names)

    @cached_property
    def vocabulary_table(self) -> pa.Table:
        return self.corpus_shard("vocab").table(VOCABULARY.names)

    def blank_model(self) -> LanguageModel:
        """A model of the run's shape; its weights mean nothing."""
        window = self.config.corpus.window
        return fresh_model(self.config.model, vocabulary=self.num_tokens, window=window, seed=0)


def overlap(steps: range, segment: Marker) -> bool:
    return any(step in steps for step in range(segment.first_step, segment.end_step))
