"""What a run holds: markers, configuration, sizes and the tables that analyses read.

``analysis.run.run.Run`` adds the queries that users ask.
"""

import os
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Self

import pyarrow as pa

from analysis.run import custom_loop
from analysis.run.committed import Committed, warn_if_short
from analysis.run.given_model import Given, GivenModel
from analysis.run.scan import Shard
from capture.config.reading import make_config
from capture.config.settings import Config
from capture.format import checkpoint
from capture.format.chain import read_segments, require_start
from capture.format.markers import Marker
from capture.format.replay_markers import add_replayed_files
from capture.format.run_yaml import KEY, read_run
from capture.gradients.factors import choose_units
from capture.gradients.layout import Layout
from capture.maintenance.verify import Finding
from capture.models.huggingface import stored_transposed
from capture.models.transformer import AnyModel, build_model
from capture.shards.schema import DATUMS, VOCABULARY
from capture.store import Store
from capture.store.config import StoreConfig

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True, eq=False)
class StoredRun:
    """The committed part of a run at the time when it was opened."""

    committed: Committed
    config: Config
    """The configuration that the run was captured with."""
    provenance: dict[str, Any]
    """Contents of ``run.yaml``: configuration, versions, device, git commit, time."""
    elsewhere: Store | None = None
    """Where tables of analyses are written instead of in the run."""
    given: GivenModel = field(default_factory=GivenModel)
    """What the user says about the model."""

    @classmethod
    def open(
        cls,
        uri: str | os.PathLike[str],
        store: StoreConfig,
        *,
        skip_damaged: bool,
        tables: str | os.PathLike[str] | None,
        model: Given | None = None,
    ) -> Self:
        """Open a run as this class; only ``open_run`` calls it."""
        place = Store(os.fspath(uri), store)
        start = require_start(place)
        provenance = read_run(place, start)
        config = make_config(provenance["config"], where=f"{place.uri}/{KEY}")
        segments = add_replayed_files(place, read_segments(place))
        warn_if_short(place, start, segments, provenance["config"])
        elsewhere = None if tables is None else Store(os.fspath(tables), store)
        replayed = config.run.loop == "capture"
        committed = Committed(place, start, segments, skip_damaged, can_be_replayed=replayed)
        return cls(committed, config, provenance, elsewhere, GivenModel.of(model))

    @property
    def tables(self) -> Store:
        """Where tables of analyses are written, under ``analysis/``: the run, or another place."""
        return self.elsewhere or self.store

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
        """Folder or prefix of the run."""
        return self.store.uri

    @property
    def steps_done(self) -> int:
        """Number of committed steps; they are numbered from 0."""
        return self.committed.steps_done

    @property
    def num_steps(self) -> int:
        """Number of steps of the finished run; for a custom loop, ``steps_done``."""
        if self.from_custom_loop:
            return self.steps_done
        return self.config.training.epochs * (self.num_datums // self.config.training.batch)

    @property
    def from_custom_loop(self) -> bool:
        """Whether the run was recorded in a custom training loop (``ontogeny.record``)."""
        return self.config.run.loop == "own"

    @property
    def num_heads(self) -> int | None:
        """Heads of each layer of the study's transformer; None of a custom loop's model."""
        return None if self.from_custom_loop else self.config.model.heads

    @property
    def has_numbered_datums(self) -> bool:
        """Whether datums have numbers only: recorded in a custom loop without ``datums``."""
        return self.from_custom_loop and not self.start.files_of("corpus")

    @property
    def skipped(self) -> list[Finding]:
        """Damaged shards left out so far; filled only with ``open_run(…, skip_damaged=True)``."""
        return self.committed.skipped

    @cached_property
    def num_datums(self) -> int:
        """Number of training datums; they are numbered from 0."""
        if self.has_numbered_datums:
            return custom_loop.count_datums(self.shards("steps"))
        return self.corpus_shard("datums").require_rows()

    @cached_property
    def num_tokens(self) -> int:
        """Size of the vocabulary."""
        return self.corpus_shard("vocab").require_rows()

    @cached_property
    def layout(self) -> Layout:
        """The captured units in order; ``layout.shapes`` maps names to shapes."""
        if self.from_custom_loop:
            return custom_loop.read_layout(self.store, self.config, self.provenance, self.start)
        model = self.blank_model()
        return Layout.of(choose_units(model, self.config.capture.units), stored_transposed(model))

    # --- files ------------------------------------------------------------------------------------

    def shards(self, kind: str, steps: range | None = None) -> list[Shard]:
        """Return committed tables of a kind, in order; with ``steps``, of segments with any."""
        return self.committed.shards(kind, steps)

    def require_shards(self, kind: str) -> list[Shard]:
        """Return all tables of a kind; raise ``RunError`` if there are none."""
        return self.committed.require_shards(kind)

    def corpus_shard(self, name: str) -> Shard:
        """Return a table of the corpus; raise ``RunError`` if the run has none of this name."""
        remedy = "Say what datums are: record(…, datums=…)" if self.has_numbered_datums else ""
        return self.committed.corpus_shard(name, remedy)

    def datum_table(self, split: Split) -> pa.Table:
        shard = self.corpus_shard("datums" if split == "train" else split)
        return shard.rows_of(DATUMS)

    @cached_property
    def vocabulary_table(self) -> pa.Table:
        return self.corpus_shard("vocab").rows_of(VOCABULARY)

    def blank_model(self) -> AnyModel:
        """Return a model of the run's shape with arbitrary weights.

        Raises ``RunError`` for a run of a custom loop, whose model is not known.
        """
        if self.from_custom_loop:
            raise custom_loop.unbuilt_model_error(self.uri)
        shape = {"vocabulary": self.num_tokens, "window": self.config.corpus.window}
        checkpoint.require_model_fits(self.store, self.config.model, **shape)
        return build_model(self.config.model, **shape, seed=0, scored=self.config.corpus.scored)
