"""Open a run and query it: tables, shifts, gradients, weights.

Only files that a marker lists are read. Tables are pandas DataFrames with the columns of
``capture.shards.schema``.

Shapes: N datum, T position.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import pandas as pd
import pyarrow as pa
from torch import Tensor, nn

from analysis.run import custom_loop, description
from analysis.run.datums.datum import Datum, read_datum
from analysis.run.given_model import Given, known_model, require_recorded
from analysis.run.gradient_queries import GradientQueries
from analysis.run.scan import read_all
from analysis.run.shift_tables import (
    Indices,
    parameters_of_neurons,
    require_known,
    study_columns,
    wanted_datums,
    wanted_parameters,
    wanted_steps,
)
from analysis.run.stored_run import Split
from analysis.run.token_windows import TokenWindows
from capture.corpus.config import TASKS
from capture.errors import ConfigError, RunError, UnitError
from capture.format import checkpoint
from capture.format.corpus_tables import PLANTED_KEY
from capture.models.transformer import AnyModel, LanguageModel
from capture.parts import KnownModel, Parted, head_blocks
from capture.parts.found_parts import HeadBlocks
from capture.shards.schema import EVALUATIONS, OUTLIERS, PLANTED, STEPS, TASK_EVALUATIONS
from capture.store import DEFAULT
from capture.store.config import StoreConfig

AnyNetwork = TypeVar("AnyNetwork", bound=nn.Module)
WHEN = pa.schema([STEPS.field(name) for name in ("step", "epoch", "batch")])


def open_run(
    uri: str | os.PathLike[str],
    store: StoreConfig = DEFAULT,
    *,
    skip_damaged: bool = False,
    tables: str | os.PathLike[str] | None = None,
    model: Given | None = None,
) -> "Run":
    """Open a run for reading, as it stands now; see ``ontogeny.open_run``.

    ``tables``: where tables of analyses are written and looked for first; the run by default.
    ``model``: the module of a custom loop, its ``ModelParts``, both, or a function that returns it.
    Raises ``RunError`` if there is no run or a newer version made it, and ``ShardError`` if a
    marker or ``run.yaml`` is damaged.

    Example:
        >>> run = ontogeny.open_run("runs/demo")
        >>> run.steps_done == run.num_steps
        True
    """
    return Run.open(uri, store, skip_damaged=skip_damaged, tables=tables, model=model)


@dataclass(frozen=True, eq=False, repr=False)
class Run(GradientQueries, TokenWindows):
    """A run opened for reading, by ``open_run``.

    Steps, datums, tokens and windows of training are numbered from 0. A *unit* is a captured
    parameter tensor, named as in ``model.named_parameters()``. Shifts are in units of the weight.
    """

    def __repr__(self) -> str:
        return description.as_text(description.describe(self))

    def _repr_html_(self) -> str:
        return description.as_html(description.describe(self))

    def __dir__(self) -> list[str]:
        """Public names only, for tab completion."""
        return [name for name in super().__dir__() if not name.startswith("_")]

    # --- tables -----------------------------------------------------------------------------------

    def steps(self) -> pd.DataFrame:
        """Return one row per training step.

        Returns:
            Columns step, epoch, batch (in the epoch), learning_rate, gradient_norm (whole model,
            before clipping), clip (factor applied to the gradient, at most 1), loss (mean
            cross-entropy, nats per token), audit_error (‖Σ shifts − applied change‖ / ‖applied
            change‖) and datums (list of datum numbers, by slot in the batch).

        Example:
            >>> run.steps()[["step", "loss"]].tail(1)["step"].item() == run.steps_done - 1
            True
        """
        return read_all(self.shards("steps"), STEPS).to_pandas()

    def evaluations(self) -> pd.DataFrame:
        """Return one row per evaluation on held-out text.

        Returns:
            Columns step (steps done before), epoch, split (validation or test), loss (nats per
            token, dropout off), perplexity (exp(loss)) and tokens (number of tokens). A run on a
            task (``corpus.kind=digits``, for example) also has accuracy (share of the targets that
            are the likeliest token) and datum_accuracy (share of the datums of which every target
            is).
        """
        schema = TASK_EVALUATIONS if self.config.corpus.kind in TASKS else EVALUATIONS
        return read_all(self.shards("evaluations"), schema).to_pandas()

    def vocabulary(self) -> pd.DataFrame:
        """Return columns token_id, token and count (occurrences in the training text)."""
        return self.vocabulary_table.to_pandas()

    def datums(self, split: Split = "train") -> pd.DataFrame:
        """Return one row per datum of a split: train, validation or test.

        Returns:
            Columns datum, tokens (list of token ids of the window), last_target (target of the last
            position; the other targets are the tokens one later) and text.

        Raises:
            RunError: The run has no such split.
        """
        return self.datum_table(split).to_pandas()

    def datum(self, number: int, split: Split = "train") -> Datum:
        """Return one datum, which prints as its text, or as a picture (an image, a maze).

        Raises:
            RunError: The run has no such split or datum.

        Example:
            >>> run.datum(3).text == run.texts[3].as_py()
            True
        """
        return read_datum(self, number, split)

    def planted(self) -> pd.DataFrame:
        """Return a row per training datum that ``corpus.plant``, ``scramble`` or ``flip`` changed.

        Returns:
            Columns datum, kind (plant, scramble or flip) and position (place of the trigger's first
            token in the datum; 0 for other kinds).

        Raises:
            RunError: Nothing was planted in the run.
        """
        if not any(file.key == PLANTED_KEY for file in self.start.files_of("corpus")):
            problem = "has nothing planted in its training text"
            remedy = "Set corpus.plant, corpus.scramble or corpus.flip when you capture it"
            raise RunError(self.uri, problem, remedy)
        return self.corpus_shard("planted").rows_of(PLANTED).to_pandas()

    # --- recorded shifts --------------------------------------------------------------------------

    def shifts(
        self,
        unit: str | Sequence[str] | None = None,
        index: Indices | None = None,
        steps: range | None = None,
        datum: Indices | None = None,
        neuron: Indices | None = None,
    ) -> pd.DataFrame:
        """Return the recorded shifts (outliers) that meet all conditions, in order of capture.

        A shift is the change of one parameter in one step due to one datum, −lr · clip ·
        preconditioner · gradient share. Only the largest of each datum and step are recorded
        (``capture.outliers.k``, ``.steps``). Only row groups that can hold matching rows are read.

        Args:
            unit: Name of one unit or several.
            index: Flat (row-major) index into the unit, or several; needs ``unit``.
            steps: Steps of the run, as a range.
            datum: Number of one datum or several.
            neuron: Number of one neuron or several of one ``unit`` with two axes: its columns, or
                rows where the weight is stored transposed. Needs no ``unit`` if only one has two.

        Returns:
            Columns epoch and batch; datum_ix (slot in the batch); unit (categorical) and index;
            diff (the shift, in units of the weight) and abs_diff; datum (text, categorical); step;
            datum_id; position (in the window, of the largest contribution to the shift).

        Raises:
            UnitError: A unit, index or neuron was not captured, or ``neuron`` needs a ``unit``.
            RunError: The run lacks one of the steps, a datum, or the outlier record.

        Example:
            >>> shifts = run.shifts(unit="layers.1.linear2.weight", steps=range(5))
            >>> set(shifts["step"]) <= set(range(5))
            True
        """
        self.require_shards("outliers")
        wanted: dict[str, Sequence[Any]] = {}
        if steps is not None:
            wanted["step"] = steps = wanted_steps(self.uri, steps, self.steps_done)
            self.committed.require_steps("outliers", steps)
        if datum is not None:
            wanted["datum"] = wanted_datums(self.uri, datum, self.num_datums)
        if neuron is not None:
            unit, index = parameters_of_neurons(self.layout, unit, neuron, index)
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

    # --- weights ----------------------------------------------------------------------------------

    def model(self, step: int | None = None) -> LanguageModel:
        """Return the model after ``step`` updates (default: all committed), for evaluation.

        Raises:
            RunError: The run has no weights after ``step`` updates (see ``weights``), or its model
                is not Ontogeny's own transformer.

        Example:
            >>> run.model().config.layers == run.config.model.layers
            True
        """
        network = self.network(step)
        if not isinstance(network, LanguageModel):
            kind = "perceptron" if self.config.model.kind == "mlp" else "Hugging Face model"
            problem = f"has a {kind}; this needs the layers of Ontogeny's transformer"
            remedy = "run.network returns any model, run.parted one whose parts are known"
            raise RunError(self.uri, problem, remedy)
        return network

    def parted(self, step: int | None = None) -> KnownModel:
        """Like ``network``, with the parts of the model: layers, heads, MLPs, unembedding.

        Ontogeny's transformer is returned as it is. Raises what ``network`` raises, ``RunError``
        for a perceptron, and ``ConfigError`` if the parts are not found.

        Example:
            >>> run.parted(0).config.layers == run.config.model.layers
            True
        """
        if not self.from_custom_loop:
            return known_model(self.network(step), self.token_NT, self.given, self.uri)
        if self.given.module is None:
            raise custom_loop.no_model_error(self.uri)
        if self.length_N is not None:
            problem = "has datums of different length, which the model is not run on"
            remedy = "Record datums of one length, or load run.checkpoint() in your own code"
            raise RunError(self.uri, problem, remedy)
        network = self.restored(self.given.copy(), step)
        return known_model(network, self.token_NT, self.given, self.uri)

    @cached_property
    def head_blocks(self) -> dict[str, HeadBlocks]:
        """Weights with blocks of heads, of another model than Ontogeny's transformer.

        Empty for that one, and where no heads are found or the model is missing.
        """
        try:
            module = self.given.module if self.from_custom_loop else self.blank_model()
            if module is None or self.length_N is not None:
                return {}
            model = known_model(module, self.token_NT, self.given, self.uri)
        except (ConfigError, RunError):
            return {}
        return head_blocks(model) if isinstance(model, Parted) else {}

    def network(self, step: int | None = None) -> AnyModel:
        """Like ``model``, but also returns Hugging Face models.

        Raises what ``weights`` raises, and ``RunError`` for the model of a custom loop.
        """
        return self.restored(self.blank_model(), step)

    def restored(self, model: AnyNetwork, step: int | None = None) -> AnyNetwork:
        """Return a model with the weights after ``step`` updates, for evaluation."""
        step = self.steps_done if step is None else step
        weights = self.weights(step)
        if self.from_custom_loop:  # a module of the user
            require_recorded(model, weights)
        checkpoint.restore(model, weights, f"{self.uri}/{checkpoint.key_of(step)}")
        return model.eval().requires_grad_(False)

    def checkpoint(self, step: int | None = None) -> dict[str, Tensor]:
        """Return the tensors stored after ``step`` updates (default: all committed).

        Weights by name, and optimizer state as ``optimizer/STATE/PARAMETER``. Raises ``RunError``
        without a checkpoint there; there is one at the start, and one after each segment.
        """
        return self.committed.checkpoint(self.steps_done if step is None else step)
