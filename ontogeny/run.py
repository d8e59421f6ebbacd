"""A run as the public API has it: with the questions that are asked most."""

import os
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis.jobs.tables import marker_key, read_table, table_set
from analysis.run import run as stored
from analysis.run.shift_tables import indices_of_neurons
from capture.errors import RunError
from capture.models.huggingface import HFModel
from capture.store import DEFAULT
from capture.store.config import StoreConfig
from ontogeny.neuron import Neuron

if TYPE_CHECKING:
    from analysis.ablation.config import AblationConfig
    from analysis.ablation.tables import Ablation
    from analysis.attribution.config import AttributionConfig
    from analysis.attribution.tables import Attribution
    from analysis.faithfulness.confirm import ConfirmConfig
    from analysis.run.given_model import Given
    from ontogeny.answers import Progress

SHOWN = (
    *("config", "provenance", "uri", "tables", "steps_done", "num_steps", "num_datums"),
    *("num_tokens", "layout", "steps", "evaluations", "vocabulary", "datums", "datum"),
    *("planted", "tokens", "texts", "token_NT", "target_NT", "shifts", "gradients", "gradient"),
    *("shift", "lifetime_shifts", "initial_decay", "column", "neuron_gradient", "inner_products"),
    *("model", "parted", "to_transformers", "read_out", "checkpoint", "attribute", "ablate"),
    "neuron",
)
"""What tab completion offers, and the reference documents."""


def open_run(
    uri: str | os.PathLike[str],
    store: StoreConfig = DEFAULT,
    *,
    skip_damaged: bool = False,
    tables: str | os.PathLike[str] | None = None,
    model: "Given | None" = None,
) -> "Run":
    """Open a run for reading, as it stands now, also while it is trained.

    Tables are read when a query needs them. ``IncompleteRunWarning`` says that the run holds fewer
    steps than it should and is not being captured.

    Args:
        uri: Folder or prefix of the run: a path, ``file://…``, ``s3://bucket/prefix`` or
            ``memory://…``.
        store: Settings for object stores, such as the endpoint.
        skip_damaged: Leave out shards that differ from what their markers say, and list them in
            ``Run.skipped``. Each shard is read whole once for this check.
        tables: Folder or prefix for the tables of analyses, as for a run that you may only read:
            they are written to ``TABLES/analysis/`` and looked for there first.
        model: What the run does not know of its model: the module that a custom loop trained (its
            weights are replaced by those of checkpoints), ``ModelParts`` where parts are not found
            by structure, a pair of both, or a function without arguments that returns one of these.

    Returns:
        The run.

    Raises:
        RunError: There is no run at ``uri``, or a newer version of Ontogeny made it.
        ShardError: A marker or ``run.yaml`` is damaged.

    Example:
        >>> run = ontogeny.open_run("runs/demo")
        >>> run.steps_done == run.num_steps
        True
    """
    return Run.open(uri, store, skip_damaged=skip_damaged, tables=tables, model=model)


class Run(stored.Run):
    __doc__ = stored.Run.__doc__

    def __dir__(self) -> list[str]:
        """Documented names, for tab completion."""
        return list(SHOWN)

    def attribute(
        self,
        config: "AttributionConfig | None" = None,
        *,
        lifetime: bool = False,
        confirm: "ConfirmConfig | None" = None,
        save: bool = False,
        name: str = "",
        replace: bool = False,
        progress: "Progress | None" = None,
    ) -> "Attribution":
        """Find which tokens and datums moved which neurons; see ``ontogeny.attribute``.

        Example:
            >>> tokens = run.attribute().tokens
        """
        from ontogeny.analyses import attribute

        how = {"save": save, "name": name, "replace": replace}
        return attribute(self, config, lifetime=lifetime, confirm=confirm, progress=progress, **how)

    def ablate(
        self,
        config: "AblationConfig | None" = None,
        *,
        save: bool = False,
        name: str = "",
        replace: bool = False,
        progress: "Progress | None" = None,
    ) -> "Ablation":
        """Ablate neurons, rows or heads and measure what changes; see ``ontogeny.ablate``.

        Example:
            >>> only = ontogeny.AblationConfig(only=("layers.1.linear2.weight:3",))
            >>> changes = run.ablate(only).neurons
        """
        from ontogeny.analyses import ablate

        how = {"save": save, "name": name, "replace": replace}
        return ablate(self, config, progress=progress, **how)

    def to_transformers(self, step: int | None = None) -> Any:
        """Return the model after ``step`` updates (default: all) as an object of transformers.

        ``save_pretrained`` of it writes a folder that ``from_pretrained``, and tools on top of
        transformers such as TransformerLens, load.

        Raises:
            RunError: The run is not of a Hugging Face model, or has no checkpoint there.

        Example:
            >>> run.config.model.kind  # a run of model.kind=hf has it
            'transformer'
        """
        network = None if self.from_custom_loop else self.network(step)
        if not isinstance(network, HFModel):
            problem = "has no model of transformers"
            raise RunError(self.uri, problem, "run.checkpoint returns the weights of any model")
        return network.whole

    def read_out(self, step: int, datum: int, unit: str, *, most: int = 10) -> pd.DataFrame:
        """Read the two factors of a datum's gradient out in the vocabulary, position by position.

        Position t adds a multiple of −δ_t a_tᵀ to the weight, which so learns to answer an input
        like a_t with −δ_t. Each vector is read as if it were added to the state before the final
        norm: through the norm, without its division, and the unembedding (logit lens; Katz et al.
        2024, "Backward Lens"). Steps since the last checkpoint are replayed, so that both are those
        of the step; those of a custom loop cannot be, and the last checkpoint is taken.

        Args:
            step: Step of the gradient.
            datum: A datum of that step.
            unit: A weight of two axes that reads or writes the residual stream.
            most: How many of the largest, and of the smallest, logits of each position and side.

        Returns:
            Columns position (in the window), side (input: a; output: −δ), rank (1 is the largest
            logit, −1 the smallest), token_id, token, logit (less the mean over the vocabulary) and
            unembedding_step (updates before the unembedding). Positions that add nothing to the
            gradient are left out.

        Raises:
            UnitError: The unit was not captured, has one axis, or is as wide as the residual stream
                on no side.
            RunError: As ``gradient``; also if the model of a custom loop was not passed.
            ReplayError: As ``weights``.

        Example:
            >>> datum = run.steps()["datums"][0][0]
            >>> found = run.read_out(0, datum, "layers.1.linear2.weight", most=2)
            >>> found[found["position"] == 0]["rank"].tolist()
            [1, 2, -2, -1]
        """
        from analysis.read_out import read_out

        return read_out(self, step, datum, unit, most)

    def neuron(self, unit: str, n: int, *, attribution: str = "") -> Neuron:
        """Return what is known about one neuron: its tokens, datums, history and ablation.

        Tokens and datums are those of the attribution in the run, or else of an attribution with
        default settings, which is computed at the first call.

        Args:
            unit: An MLP unit, as in ``layers.2.linear2.weight``.
            n: Index of one of the unit's neurons (inputs).
            attribution: Name of the attribution, if it has one.

        Returns:
            The neuron; printed, or as the last line of a notebook's cell, it shows a summary.

        Raises:
            UnitError: The unit was not captured, or has no such neuron.
            RunError: The run has no attribution of this name, or no record to attribute from.

        Example:
            >>> neuron = run.neuron("layers.1.linear2.weight", 3)
            >>> neuron.tokens.columns.tolist()[:3]
            ['token', 'weight', 'relative_frequency']
        """
        indices_of_neurons(self.layout, unit, n, None)  # raises UnitError
        parts = {
            table: self._attributed(table, unit, n, attribution)
            for table in ("tokens", "windows", "datums")
        }
        return Neuron.of(self, unit, n, attribution=attribution, **parts)

    def _attributed(self, table: str, unit: str, n: int, name: str) -> pd.DataFrame:
        """Return a neuron's rows of a table of attribution."""
        from analysis.attribution.tables import TABLES

        job = table_set("attribute", name)
        if not name and not any(
            store.exists(marker_key(job)) for store in (self.tables, self.store)
        ):
            whole: pd.DataFrame = getattr(self._attribution, table)
            mine = (whole["level"] == "neuron") & (whole["unit"] == unit) & (whole["group"] == n)
            return whole[mine]
        wanted: dict[str, Sequence[object]] = {"level": ["neuron"], "unit": [unit], "group": [n]}
        return read_table(self, job, table, TABLES[table], wanted)

    @cached_property
    def _attribution(self) -> "Attribution":
        return self.attribute()
