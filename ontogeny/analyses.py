"""Ask a run: the public functions that answer, each as the command of the same name does.

All take a ``Run`` or the place of one, an optional configuration, and return a frozen dataclass of
pandas DataFrames. ``save=True`` also leaves the tables in the run under ``analysis/COMMAND/``,
where ``ablate``, ``neurons``, ``faithfulness`` and ``report`` look for those of ``attribute``.
Work is done by threads of this process; the command line takes the same questions to a Ray cluster.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from os import PathLike

from analysis.ablation.ablate import ablate as ablate_run
from analysis.ablation.ablate import write_ablation
from analysis.ablation.config import AblationConfig
from analysis.ablation.tables import Ablation
from analysis.activations.config import ActivationConfig
from analysis.activations.tables import Activations, write_activations
from analysis.activations.tables import activations as measure_activations
from analysis.attribution.attribute import attribute as attribute_run
from analysis.attribution.attribute import write_attribution
from analysis.attribution.config import AttributionConfig
from analysis.attribution.tables import Attribution
from analysis.behaviour.behaviour import (
    Behaviour,
    BehaviourConfig,
    analyse_behaviour,
    write_behaviour,
)
from analysis.behaviour.predicates import Predicate
from analysis.bigrams.bigrams import BigramConfig, BigramTables, find_bigrams, write_bigrams
from analysis.faithfulness.confirm import ConfirmConfig, Confirmed, require_confirmable
from analysis.faithfulness.confirm import confirm as confirm_tokens
from analysis.faithfulness.faithfulness import Faithfulness, write_faithfulness
from analysis.faithfulness.faithfulness import faithfulness as evaluate_methods
from analysis.faithfulness.ground_truth import FaithfulnessConfig
from analysis.jobs.question import Question
from analysis.jobs.tables import check_set_name
from analysis.neurons.grouping import (
    NeuronClusters,
    NeuronsConfig,
    group_neurons,
    read_outlier_sums,
    write_neurons,
)
from analysis.report.build import ReportConfig, gather_report_data, report_store, write_report
from analysis.run.run import Run, open_run
from cluster.local.threads import run_job

Progress = Callable[[int, int], None]
"""Called with what is done and what there is in all (rows, datums or steps)."""


def attribute(
    run: Run | str | PathLike[str],
    config: AttributionConfig | None = None,
    *,
    confirm: ConfirmConfig | None = None,
    save: bool = False,
    name: str = "",
    progress: Progress | None = None,
) -> Attribution:
    """Find which tokens and datums moved which neurons (rows, heads, parameters) most.

    The answer says what happened while the model was trained. It does not say what the model would
    be without these data; see ``ablate`` and ``faithfulness`` for what depends on a neuron.

    Args:
        run: A run, or the folder or prefix where it is.
        config: What is asked; by default the evidence that ablation agreed with best: tallies
            where the run has them, else outliers.
        confirm: Test each token by ablating the neuron on held-out text, beside null models.
        save: Also write the tables to the run.
        name: Keep the tables beside others, under ``analysis/attribute/NAME/``.
        progress: Called with rows read and rows in all, then with ablated datums.

    Returns:
        DataFrames ``groups`` (one row a neuron), ``tokens`` (a neuron and a token that stands out
        in it), ``windows`` (when), ``datums`` (which datums moved it most), ``confirmed`` and
        ``nulls`` (the test by ablation; empty without ``confirm``) and others.

    Raises:
        RunError: The run has no committed steps, or lacks the record that ``config`` asks for;
            with ``confirm``, it has no held-out text or a model that cannot be ablated.

    Example:
        >>> found = ontogeny.attribute("runs/demo", save=True)
        >>> found.groups.columns.tolist()
        ['level', 'unit', 'group', 'rows', 'weight', 'tokens']
    """
    if name:
        check_set_name("name", name)
    opened = opened_run(run)
    chosen = config or AttributionConfig.recommended(tallies=bool(opened.shards("tallies")))
    if confirm is not None:
        require_confirmable(opened, chosen.level)
    found = attribute_run(opened, partial(run_job, report=progress), chosen)
    if confirm is not None:
        found = confirm_tokens(opened, found, confirm, progress)
    if save:
        asked = [chosen] if confirm is None else [Confirmed(confirm), chosen]
        write_attribution(opened, found, Question.of("attribute", *asked), name)
    return found


def ablate(
    run: Run | str | PathLike[str],
    config: AblationConfig | None = None,
    *,
    save: bool = False,
    progress: Progress | None = None,
) -> Ablation:
    """Ablate neurons, rows or heads of the trained model one at a time; measure what changes.

    Needs the tables of ``attribute(run, save=True)``: they say which neurons are ablated first and
    which tokens are notable.

    Args:
        run: A run, or the folder or prefix where it is.
        config: Which ones, replaced by what (zero, mean, resampled), on which text.
        save: Also write the tables to the run.
        progress: Called with pairs of neuron and datum done and in all.

    Returns:
        DataFrames ``flips`` (share of next-token predictions that change, by token, with 95 %
        interval), ``neurons``, ``tokens`` (change of the log-probability of the true token, in
        nats), ``contexts`` and others.

    Raises:
        RunError: ``attribute`` has not been saved, or is older than the run.
        ConfigError, UnitError: A neuron, row or head does not exist.

    Example:
        >>> only = ("layers.1.linear2.weight:3",)
        >>> effect = ontogeny.ablate("runs/demo", ontogeny.AblationConfig(only=only))
        >>> effect.neurons[["unit", "neuron"]].values.tolist()
        [['layers.1.linear2.weight', 3]]
    """
    opened = opened_run(run)
    chosen = config or AblationConfig()
    found = ablate_run(opened, chosen, progress)
    if save:
        write_ablation(opened, found, Question.of("ablate", chosen))
    return found


def activations(
    run: Run | str | PathLike[str],
    config: ActivationConfig | None = None,
    *,
    save: bool = False,
    progress: Progress | None = None,
) -> Activations:
    """Measure the inputs and outputs of MLP neurons at every position of the training datums.

    Args:
        run: A run, or the folder or prefix where it is.
        config: Which tokens, which neuron is compared, at which checkpoint.
        save: Also write the tables to the run.
        progress: Called with datums done and in all.

    Returns:
        DataFrames of statistics by token and neuron, and of the comparison of one neuron.

    Raises:
        RunError: The run has no checkpoint at the step.
        ConfigError, UnitError: A token or a neuron does not exist.

    Example:
        >>> measured = ontogeny.activations("runs/demo")
    """
    opened = opened_run(run)
    found = measure_activations(opened, config or ActivationConfig(), progress)
    if save:
        write_activations(opened, found, Question.of("activations", config or ActivationConfig()))
    return found


def behaviour(
    run: Run | str | PathLike[str],
    predicate: Predicate,
    config: BehaviourConfig | None = None,
    *,
    save: bool = False,
    progress: Progress | None = None,
) -> Behaviour:
    """Compare what datums with a property moved with what similar datums without it moved.

    Args:
        run: A run, or the folder or prefix where it is.
        predicate: The property: a token in the window or among its targets, a regular expression,
            or ids of datums.
        config: How many datums and controls, and the bootstrap.
        save: Also write the tables to the run.
        progress: Called with rows read and rows in all.

    Returns:
        DataFrames of the contrast by unit, neuron and head, with intervals, and of the matching.

    Raises:
        RunError: The run lacks the token or datum, or too few datums are left on one side.

    Example:
        >>> moved = ontogeny.behaviour("runs/demo", ontogeny.Predicate(contains="w3"))
    """
    opened = opened_run(run)
    job = partial(run_job, report=progress)
    found = analyse_behaviour(opened, job, predicate, config or BehaviourConfig())
    if save:
        write_behaviour(
            opened, found, Question.of("behaviour", predicate, config or BehaviourConfig())
        )
    return found


def bigrams(
    run: Run | str | PathLike[str],
    config: BigramConfig | None = None,
    *,
    save: bool = False,
    progress: Progress | None = None,
) -> BigramTables:
    """Find the bigrams (token, next token) whose logits the training moved most, and by which data.

    Args:
        run: A run, or the folder or prefix where it is.
        config: Which steps, which first token, how many.
        save: Also write the tables to the run.
        progress: Called with steps done and in all.

    Returns:
        DataFrames of bigrams (change of the logit) and of the datums behind each.

    Raises:
        RunError: The run lacks the steps, or embedding and unembedding are not captured.
        ConfigError: The run lacks the token.

    Example:
        >>> found = ontogeny.bigrams("runs/demo", ontogeny.BigramConfig(top=5))
        >>> len(found.bigrams)
        5
    """
    opened = opened_run(run)
    found = find_bigrams(opened, config or BigramConfig(), progress)
    if save:
        write_bigrams(opened, found, Question.of("bigrams", config or BigramConfig()))
    return found


def neurons(
    run: Run | str | PathLike[str],
    config: NeuronsConfig | None = None,
    *,
    save: bool = False,
    progress: Progress | None = None,
) -> NeuronClusters:
    """Cluster neurons by the datums that moved them, and find those that are polysemantic.

    Args:
        run: A run, or the folder or prefix where it is.
        config: The clustering, and how many outlier rows a neuron must have.
        save: Also write the tables to the run.
        progress: Called with rows read and rows in all.

    Returns:
        DataFrames of neurons, clusters, topics and the stability of the clustering.

    Raises:
        RunError: Too few neurons have enough rows.

    Example:
        >>> few = ontogeny.NeuronsConfig(min_rows=1)
        >>> grouped = ontogeny.neurons("runs/demo", few)
    """
    opened = opened_run(run)
    moved = read_outlier_sums(opened, partial(run_job, report=progress))
    found = group_neurons(opened, moved, config or NeuronsConfig())
    if save:
        write_neurons(opened, found, Question.of("neurons", config or NeuronsConfig()))
    return found


def faithfulness(
    run: Run | str | PathLike[str],
    config: FaithfulnessConfig | None = None,
    *,
    save: bool = False,
    progress: Progress | None = None,
) -> Faithfulness:
    """Evaluate attribution methods: which of them ranks first the tokens that ablation changes?

    The ground truth is the change of log-probability on held-out text when a neuron is ablated.

    Args:
        run: A run, or the folder or prefix where it is.
        config: How many neurons, drawn at random, and on which text.
        save: Also write the tables to the run.
        progress: Called with datums done and in all.

    Returns:
        DataFrames of AUC and precision by method, unit and neuron, with intervals, a random
        baseline, and the split-half reliability of the ground truth.

    Raises:
        RunError: The run holds no held-out text, or too little to rank any token.

    Example:
        >>> config = ontogeny.FaithfulnessConfig(neurons=2, min_count=1)
        >>> scores = ontogeny.faithfulness("runs/demo", config)
    """
    opened = opened_run(run)
    found = evaluate_methods(opened, run_job, config or FaithfulnessConfig(), progress)
    if save:
        write_faithfulness(
            opened, found, Question.of("faithfulness", config or FaithfulnessConfig())
        )
    return found


def report(
    run: Run | str | PathLike[str],
    *,
    to: str | None = None,
    max_neurons: int | None = None,
    attribution: str = "",
    progress: Progress | None = None,
) -> str:
    """Write static HTML pages of a run and of the tables that its analyses left there.

    Args:
        run: A run, or the folder or prefix where it is.
        to: Folder or prefix for the pages; the run's own ``report/`` by default.
        max_neurons: Pages for so many neurons, those with most evidence first; all by default.
        attribution: Name of the attribution that is shown; by default the one without a name.
        progress: Called with rows read and rows in all.

    Returns:
        Where the first page is: ``…/index.html``.

    Raises:
        RunError: ``attribute`` has not been saved for neurons, or ``to`` holds something else.

    Example:
        >>> ontogeny.report("runs/demo", to="report")
        'report/index.html'
    """
    opened = opened_run(run)
    store = report_store(opened, to)
    config = ReportConfig(attribution=attribution)
    if max_neurons is not None:
        config = replace(config, max_neurons=max_neurons)
    material = gather_report_data(opened, partial(run_job, report=progress), config)
    return write_report(material, store).index


def opened_run(run: Run | str | PathLike[str]) -> Run:
    return run if isinstance(run, Run) else open_run(run)
