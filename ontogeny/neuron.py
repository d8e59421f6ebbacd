"""One neuron, with what the record and ablation say about it."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from html import escape

import numpy as np
import pandas as pd

from analysis.jobs.neuron_influence import NeuronInfluence, neuron_influences
from analysis.run.run import Run
from analysis.run.tallies import neuron_history

TOKENS = ["token", "weight", "relative_frequency", "expected", "q", "count", "up", "down"]
DATUMS = ["datum", "weight", "rows", "step", "position", "shift", "text"]
WITHOUT = ["query", "datum", "influence", "departure", "text"]
LEFT = ["query", "share", "left", "random", "random_sets", "mean", "low", "high", "queries"]
WINDOWS = ["window", "first_step", "end_step", "token", "weight", "expected"]
SHOWN = 10
"""Tokens in the summary."""
DATUMS_SHOWN = 3
TEXT_SHOWN = 70
"""Letters of a datum in the summary."""


@dataclass(frozen=True, eq=False, repr=False)
class Neuron:
    """A neuron of a run, made by ``run.neuron(unit, n)``."""

    run: Run
    unit: str
    number: int
    tokens: pd.DataFrame
    """Tokens that stand out in its evidence, strongest first; empty if none does. Columns token,
    weight (of the evidence), relative_frequency (weight / expected), expected, q, count, up and
    down."""
    windows: pd.DataFrame
    """When: one row per token and window of training. Columns window, first_step, end_step, token,
    weight, expected."""
    datums: pd.DataFrame
    """Training datums that moved it most, first the one with the greatest weight. Columns datum,
    weight, rows, step, position, shift (of the row of largest |shift|), text."""
    attribution: str = ""
    """Name of the attribution that tokens and datums come from."""

    @classmethod
    def of(
        cls,
        run: Run,
        unit: str,
        number: int,
        *,
        tokens: pd.DataFrame,
        windows: pd.DataFrame,
        datums: pd.DataFrame,
        attribution: str = "",
    ) -> "Neuron":
        """Make it from its rows of the tables of attribution."""
        ranked = tokens.sort_values("rank")[TOKENS].reset_index(drop=True)
        texts = np.array(run.texts, object)[datums["datum"].to_numpy()]
        with_text = datums.assign(text=texts)[DATUMS].reset_index(drop=True)
        when = windows[WINDOWS].reset_index(drop=True)
        return cls(run, unit, number, ranked, when, with_text, attribution)

    @property
    def name(self) -> str:
        """``UNIT:N``, as the command line spells it."""
        return f"{self.unit}:{self.number}"

    @cached_property
    def history(self) -> pd.DataFrame:
        """Its tallies by window and target token; see ``ontogeny.neuron_history``.

        Raises ``RunError`` or ``UnitError`` without tallies of the unit.
        """
        return neuron_history(self.run, self.unit, self.number)

    @cached_property
    def without(self) -> pd.DataFrame:
        """What it would be without: the datums by unrolled influence on its effect, largest first.

        Columns query, datum, influence (nats; without the datum, the effect would be smaller by
        about that), departure (from 1 on, retraining refuted the prediction; NaN: not tried) and
        text. From the run's tables of ``influence``; empty if none has a query ``neuron:UNIT:N``.
        """
        frames = [
            own.datums.assign(query=own.query, departure=own.departure) for own in self._influences
        ]
        if not frames:
            return pd.DataFrame(columns=WITHOUT)
        whole = pd.concat(frames, ignore_index=True)
        texts = np.array(self.run.texts, object)[whole["datum"].to_numpy()]
        return whole.assign(text=texts)[WITHOUT]

    @cached_property
    def effect_left(self) -> pd.DataFrame:
        """The effect left after training without the datums that unrolled influence names.

        Columns query, share (of the datums), left (1: unchanged), random (the same for random
        datums), random_sets, and mean, low, high and queries: over all queries judged together,
        with a 95 % interval. From the run's tables of ``lds`` with ``top``; else empty.
        """
        rows = [{"query": own.query, **vars(own.left)} for own in self._influences if own.left]
        return pd.DataFrame(rows, columns=LEFT)

    @cached_property
    def _influences(self) -> list[NeuronInfluence]:
        return neuron_influences(self.run).get((self.unit, self.number), [])

    @cached_property
    def ablation(self) -> pd.Series:
        """What ablating it does: its row of the table ``neurons`` of ``ablate``, computed once.

        Raises ``RunError`` if the run has no attribution (``run.attribute(save=True)``), or if its
        model cannot be ablated.
        """
        from analysis.ablation.config import AblationConfig
        from ontogeny.analyses import ablate

        config = AblationConfig(only=(self.name,), attribution=self.attribution)
        return ablate(self.run, config).neurons.iloc[0]

    def summary(self) -> dict[str, list[str]]:
        """Topic → lines."""
        tokens = [
            f"{row.token} ({row.relative_frequency:.1f} ×)"
            for row in self.tokens.head(SHOWN).itertuples()
        ]
        datums = [
            f"{row.datum} (step {row.step}): {shortened(str(row.text))}"
            for row in self.datums.head(DATUMS_SHOWN).itertuples()
        ]
        found = {
            "neuron": [f"{self.name} of {self.run.uri}"],
            "tokens": [", ".join(tokens) or "none stands out in its evidence"],
            "when": self.parts_of_training() or ["no evidence for these tokens"],
            "datums": datums or ["none has a recorded shift of it"],
        }
        without = [
            f"{row.datum} ({row.influence:+.2g} nats of {row.query}): {shortened(str(row.text))}"
            for row in self.without.head(DATUMS_SHOWN).itertuples()
        ]
        without += [
            f"NOT CONFIRMED by retraining: {own.query} (departure {own.departure:.2f})"
            for own in self._influences
            if own.departure >= 1
        ]
        without += [
            f"{row.left:.2f} of {row.query} is left after training without {row.share:.1%} of the "
            f"datums; {row.random:.2f} without random ones"
            for row in self.effect_left.itertuples()
        ]
        if without:
            found["without"] = without
        if "ablation" in vars(self):
            change = self.ablation
            share = f"{change['change']:+.4f} nats ({change['change_low']:+.4f} to "
            found["ablation"] = [f"log-probability {share}{change['change_high']:+.4f})"]
        return found

    def parts_of_training(self) -> list[str]:
        """Return the share of the evidence for its tokens in each window of training, one line."""
        by_window = self.windows.groupby(["first_step", "end_step"])["weight"].sum()
        total = by_window.sum()
        if not total:
            return []
        shares = (
            f"{first}–{end - 1}: {weight / total:.0%}"
            for (first, end), weight in by_window.items()  # pyright: ignore[reportGeneralTypeIssues]
        )
        return [f"steps {', '.join(shares)}"]

    def __repr__(self) -> str:
        return "\n".join(
            f"{topic if first else '':<8} {line}"
            for topic, lines in self.summary().items()
            for first, line in zip((True, *[False] * len(lines)), lines, strict=False)
        )

    def _repr_html_(self) -> str:
        rows = (
            f'<tr><th style="text-align:left;vertical-align:top">{topic}</th>'
            f'<td style="text-align:left">{lines_of_html(lines)}</td></tr>'
            for topic, lines in self.summary().items()
        )
        return f"<table>{''.join(rows)}</table>"

    def __dir__(self) -> list[str]:
        """Public names only, for tab completion."""
        return [name for name in super().__dir__() if not name.startswith("_")]


def shortened(text: str) -> str:
    """Return a text on one line, cut at ``TEXT_SHOWN`` letters."""
    line = " ".join(text.split())
    return line if len(line) <= TEXT_SHOWN else line[: TEXT_SHOWN - 1] + "…"


def lines_of_html(lines: Iterable[str]) -> str:
    return "<br>".join(map(escape, lines))
