"""Measure what the pages of neurons show of the trained model and of the datums behind tokens."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import numpy as np
import pandas as pd

from analysis.activations.histograms import HISTOGRAMS, neuron_histograms
from analysis.activations.quantities import units_of
from analysis.jobs.question import Question
from analysis.report.measured.direct_logits import LOGITS, direct_logits
from analysis.report.measured.passages import PASSAGES, activating_passages
from analysis.report.measured.update_norms import DATUMS, NamedDatums, Report, named_datums
from analysis.report.pages.report_data import Measured, by_neuron
from analysis.report.pages.website import Neuron
from analysis.run.run import Run
from capture.errors import ConfigError, RunError

MAX_DATUMS = 2000
"""Datums read for activations, and for the update norm of named tokens, drawn at random."""
MAX_DATUMS_ALONE = 200
"""Datums read when one neuron is measured alone, while somebody waits for its page."""
DATUMS_SHOWN, PASSAGES_SHOWN, LOGITS_SHOWN = 8, 6, 8
"""Rows on the page of a neuron."""
KEPT = 256
"""Neurons whose results ``measured_alone`` keeps."""
TALLIES = ("update-norm", "ablation-estimate", "geometric-mean")
"""Kinds of evidence that come from tallies, less the prefix ``input-``."""


def measure_neurons(
    run: Run,
    neurons: Sequence[Neuron],
    tokens: pd.DataFrame,
    question: Question,
    report: Report | None = None,
    max_datums: int = MAX_DATUMS,
) -> Measured:
    """Measure the given neurons. ``tokens`` and ``question`` are those of the attribution.

    Nothing is measured if the run's model is missing (custom loop) or its parts are not found, nor
    of units whose inputs the model does not have.
    """
    try:
        model = run.parted()
    except (RunError, ConfigError) as error:
        return nothing(error.problem)
    units = units_of(model)
    neurons = [neuron for neuron in neurons if neuron[0] in units]
    named, drawn_N = named_tokens(tokens, neurons), sample(run.num_datums, max_datums)
    evidence = str(question.options.get("evidence", ""))
    by_input = evidence.startswith("input-")
    found = NamedDatums(DATUMS.empty_table().to_pandas(), 0, ())
    if evidence.removeprefix("input-") in TALLIES:
        options = {"by_input": by_input, "most": DATUMS_SHOWN, "report": report}
        found = named_datums(run, named, drawn_N, **options)
    return Measured(
        histograms=neuron_histograms(run, named, max_datums=max_datums),
        passages=activating_passages(run, neurons, drawn_N, PASSAGES_SHOWN),
        activation_datums=len(drawn_N),
        logits=direct_logits(model, neurons, LOGITS_SHOWN),
        datums=found.table,
        searched=found.searched,
        steps=found.steps,
        by_input=by_input,
    )


def measured_together(
    run: Run,
    neurons: Sequence[Neuron],
    tokens: pd.DataFrame,
    question: Question,
    report: Report | None = None,
) -> Callable[[Neuron], Measured]:
    """Measure all neurons at once; the result is that of each."""
    found = measure_neurons(run, neurons, tokens, question, report)
    return lambda neuron: found


def measured_alone(
    run: Run, tokens: pd.DataFrame, question: Question
) -> Callable[[Neuron], Measured]:
    """Return a function that measures one neuron when it is called, and keeps the last results."""

    @lru_cache(KEPT)
    def measured(neuron: Neuron) -> Measured:
        return measure_neurons(run, [neuron], tokens, question, max_datums=MAX_DATUMS_ALONE)

    return measured


def nothing(why: str) -> Measured:
    """Return what is measured of a run whose model is not read: nothing, and why."""
    empty = [schema.empty_table().to_pandas() for schema in (HISTOGRAMS, PASSAGES, LOGITS, DATUMS)]
    histograms, passages, logits, datums = empty
    return Measured(histograms, passages, 0, logits, datums, 0, (), by_input=False, missing=why)


def sample(number: int, most: int) -> np.ndarray:
    """Return ``most`` of ``number`` datums, ascending; the same ones in every report."""
    return np.sort(np.random.default_rng(0).permutation(number)[:most])


def named_tokens(tokens: pd.DataFrame, neurons: Sequence[Neuron]) -> Mapping[Neuron, Sequence[int]]:
    """Return the ids of the tokens in the evidence of each of the neurons that have some."""
    known = set(neurons)
    return {
        neuron: table["token_id"].tolist()
        for neuron, table in by_neuron(tokens).items()
        if neuron in known
    }
