"""Open a run and ask it things: its configuration, its tables, its weights, its shifts.

Only what a marker vouches for is read. Tables come as pandas DataFrames with the columns of
``capture.shards.schema``, where each column is described.

Shapes: N datum, T position.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
from torch import Tensor

from analysis.run import custom_loop as own_run
from analysis.run import token_windows as windows
from analysis.run.committed import Committed
from analysis.run.gradients import Gradients, StepDatum
from analysis.run.scan import Shard, read_all
from analysis.run.shift_tables import (
    Indices,
    require_known,
    study_columns,
    wanted_datums,
    wanted_parameters,
    wanted_steps,
)
from capture.config.reading import make_config
from capture.config.settings import Config
from capture.errors import RunError, UnitError
from capture.format import checkpoint
from capture.format.markers import Marker, read_segments, require_start
from capture.format.replay_markers import add_replayed_files
from capture.format.run_yaml import KEY, read_run
from capture.gradients.factors import choose_units
from capture.gradients.layout import Layout
from capture.maintenance.verify import Finding
from capture.models.huggingface import stored_transposed
from capture.models.transformer import AnyModel, LanguageModel, build_model
from capture.shards.schema import DATUMS, EVALUATIONS, OUTLIERS, STEPS, VOCABULARY
from capture.store.config import StoreConfig
from capture.store.store import DEFAULT, Store

WHEN = pa.schema([STEPS.field(name) for name in ("step", "epoch", "batch")])
Split = Literal["train", "validation", "test"]


def open_run(uri: str, store: StoreConfig = DEFAULT, *, skip_damaged: bool = False) -> "Run":
    """The run at a folder or prefix, as it stands now; ``store`` is for object stores.

    With ``skip_damaged``, shards of segments that are not what their markers say are left out and
    counted (``Run.skipped``); each is read whole for that when it is first asked for. Raises
    ``RunError`` where there is no run or a newer version made it, ``ShardError`` where its markers
    or ``run.yaml`` are damaged.
    """
    place = Store(uri, store)
    start = require_start(place)
    provenance = read_run(place, start)
    config = make_config(provenance["config"], where=f"{place.uri}/{KEY}")
    segments = add_replayed_files(place, read_segments(place))
    return Run(Committed(place, start, segments, skip_damaged), config, provenance)


@dataclass(frozen=True, eq=False)
class Run:
    """What was committed of a run when it was opened."""

    committed: Committed
    config: Config
    provenance: dict[str, Any]
    """``run.yaml``: configuration, versions, device, git commit, time."""

    @property
    def store(self) -> Store:
        return self.committed.store

    @property
    def start(self) -> Marker:
        return self.committed.start

    @property
    def segments(self) -> tuple[Marker, ...]:
        return self.committed.segments

    @property
    def uri(self) -> str:
        return self.store.uri

    @property
    def steps_done(self) -> int:
        """Steps that are committed; the last of them is one less."""
        return self.committed.steps_done

    @property
    def num_steps(self) -> int:
        """Steps that the finished run has; of a loop of its own, that it has so far."""
        if self.is_own:
            return self.steps_done
        return self.config.training.epochs * (self.num_datums // self.config.training.batch)

    @property
    def is_own(self) -> bool:
        """Whether a training loop of somebody's own made it: ``capture.custom_loop.record``."""
        return self.config.run.loop == "own"

    @property
    def is_numbered(self) -> bool:
        """Whether its datums are known by number alone."""
        return self.is_own and not self.start.files_of("corpus")

    @property
    def skipped(self) -> list[Finding]:
        """Damaged shards that were left out so far, and what is wrong with each."""
        return self.committed.skipped

    @cached_property
    def num_datums(self) -> int:
        """Training datums."""
        if self.is_numbered:
            return own_run.count_datums(self.shards("steps"))
        return self.corpus_shard("datums").require_rows()

    @cached_property
    def num_tokens(self) -> int:
        """Tokens of the vocabulary."""
        return self.corpus_shard("vocab").require_rows()

    @cached_property
    def layout(self) -> Layout:
        """The captured units, their shapes and order."""
        if self.is_own:
            return own_run.read_layout(self.store, self.config, self.provenance, self.start)
        model = self.blank_model()
        return Layout.of(choose_units(model, self.config.capture.units), stored_transposed(model))

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
        """Text of each training datum; its number where it has none."""
        if self.is_numbered:
            return own_run.number_texts(self.num_datums)
        return self.datum_table("train")["text"].combine_chunks()

    @cached_property
    def token_NT(self) -> np.ndarray:
        """Inputs of the training datums, int32."""
        table = self.datum_table("train")
        where, window = self.corpus_shard("datums").where, self.config.corpus.window
        return windows.read_inputs(table, where, window=window, num_tokens=self.num_tokens)

    @cached_property
    def target_NT(self) -> np.ndarray:
        """Targets of the training datums, int32: the inputs one later."""
        table, where = self.datum_table("train"), self.corpus_shard("datums").where
        return windows.read_targets(table, self.token_NT, where, num_tokens=self.num_tokens)

    # --- shifts and weights -----------------------------------------------------------------------

    def shifts(
        self,
        unit: str | Sequence[str] | None = None,
        index: Indices | None = None,
        steps: range | None = None,
        datum: Indices | None = None,
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
        where = f"{self.uri}/outliers"
        may_lack = self.committed.skip_damaged
        rows = require_known(rows, when, where, num_datums=self.num_datums, may_lack=may_lack)
        return study_columns(rows, when, self.texts)

    @cached_property
    def gradients(self) -> Gradients:
        """What factors tell; a step without them is taken again in memory, which is logged."""
        return Gradients(self.store, self.layout, self.shards("steps"), self.shards("factors"))

    def gradient(self, step: int, datum: int, unit: str) -> np.ndarray:
        """Of the datum's share of the batch's mean loss, of the unit's shape, before clipping."""
        return self.gradients.gradient(step, datum, unit)

    def shift(self, step: int, datum: int, unit: str) -> np.ndarray:
        """What the datum changed: its gradient times learning rate and clipping."""
        return self.gradients.shift(step, datum, unit)

    def column(self, step: int, datum: int, unit: str, n: int) -> np.ndarray:
        """Column n of the gradient as it is stored, made without the rest of it."""
        return self.gradients.column(step, datum, unit, n)

    def neuron(self, step: int, datum: int, unit: str, n: int) -> np.ndarray:
        """Of the gradient what is neuron n's, an input's: a column, or a row of [I, O]."""
        return self.gradients.neuron(step, datum, unit, n)

    def inner_products(
        self, units: str | Sequence[str], one: Sequence[StepDatum], other: Sequence[StepDatum]
    ) -> np.ndarray:
        """⟨g, g'⟩ over the units, for each (step, datum) of the one and of the other."""
        return self.gradients.inner_products(units, one, other)

    def model(self, step: int | None = None) -> LanguageModel:
        """As ``network``, of a run of the study's transformer: its layers can be looked into.

        Raises ``RunError`` for a run of another kind of model.
        """
        network = self.network(step)
        if not isinstance(network, LanguageModel):
            problem = "has a Hugging Face model, and this looks into layers of the study's alone"
            raise RunError(
                self.uri, problem, "Of any model work: attribute, behaviour, bigrams, report"
            )
        return network

    def network(self, step: int | None = None) -> AnyModel:
        """The model after ``step`` updates (by default all that are committed), for evaluation.

        Raises ``RunError`` if no checkpoint was made there, or nobody here can build the model.
        """
        step = self.steps_done if step is None else step
        model, weights = self.blank_model(), self.checkpoint(step)
        checkpoint.restore(model, weights, f"{self.uri}/{checkpoint.key_of(step)}")
        return model.eval().requires_grad_(False)

    def checkpoint(self, step: int | None = None) -> dict[str, Tensor]:
        """Weights by name after ``step`` updates (by default all that are committed), and what the
        optimizer remembers, as ``optimizer/STATE/PARAMETER``.

        Raises ``RunError`` if no checkpoint was made there.
        """
        return self.committed.checkpoint(self.steps_done if step is None else step)

    # --- files ------------------------------------------------------------------------------------

    def shards(self, kind: str, steps: range | None = None) -> list[Shard]:
        """Committed tables of one kind, in order; with ``steps``, of segments that have any."""
        return self.committed.shards(kind, steps)

    def require_shards(self, kind: str) -> list[Shard]:
        """All files of one kind; raises ``RunError`` if nothing is committed yet."""
        return self.committed.require_shards(kind)

    def corpus_shard(self, name: str) -> Shard:
        """A table of the corpus; raises ``RunError`` if the run has none of this name."""
        remedy = "Say what datums are: record(…, datums=…)" if self.is_numbered else ""
        return self.committed.corpus_shard(name, remedy)

    def datum_table(self, split: Split) -> pa.Table:
        shard = self.corpus_shard("datums" if split == "train" else split)
        return shard.rows_of(DATUMS)

    @cached_property
    def vocabulary_table(self) -> pa.Table:
        return self.corpus_shard("vocab").rows_of(VOCABULARY)

    def blank_model(self) -> AnyModel:
        """A model of the run's shape; its weights mean nothing."""
        if self.is_own:
            raise own_run.no_model_error(self.uri)
        shape = {"vocabulary": self.num_tokens, "window": self.config.corpus.window}
        checkpoint.require_model_fits(self.store, self.config.model, **shape)
        return build_model(self.config.model, **shape, seed=0)
