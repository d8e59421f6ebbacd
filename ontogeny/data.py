"""Ask the record about data: the public functions that contrast, count and cluster what it moved.

They take and return what the functions of ``ontogeny.analyses`` do.
"""

from functools import partial
from os import PathLike

from analysis.behaviour.behaviour import (
    Behaviour,
    BehaviourConfig,
    analyse_behaviour,
    write_behaviour,
)
from analysis.behaviour.predicates import Predicate, require_known
from analysis.bigrams.bigrams import (
    BigramConfig,
    BigramTables,
    find_bigrams,
    require_token,
    write_bigrams,
)
from analysis.faithfulness.confirm import ConfirmConfig, Confirmed
from analysis.faithfulness.confirm_behaviour import confirm_behaviour, require_confirmable
from analysis.jobs.question import Question
from analysis.neurons.grouping import (
    NeuronClusters,
    NeuronsConfig,
    group_neurons,
    read_outlier_sums,
    write_neurons,
)
from analysis.run.run import Run
from cluster.local.threads import run_job
from ontogeny.answers import Keep, Progress, opened_run


def behaviour(
    run: Run | str | PathLike[str],
    predicate: Predicate,
    config: BehaviourConfig | None = None,
    *,
    confirm: ConfirmConfig | None = None,
    save: bool = False,
    name: str = "",
    replace: bool = False,
    progress: Progress | None = None,
) -> Behaviour:
    """Compare what datums with a property moved with what similar datums without it moved.

    Args:
        run: A run, or the folder or prefix where it is.
        predicate: The property: a token in the window or among its targets, a regular expression,
            or ids of datums.
        config: How many datums and controls, and the bootstrap.
        confirm: Also silence the heads and neurons that were moved most on held-out text, beside
            some that were not moved.
        save: Also write the tables to the run.
        name: Keep the tables beside others, under ``analysis/behaviour/NAME/``.
        replace: Replace tables of another question that have the same name.
        progress: Called with rows read and rows in all.

    Returns:
        DataFrames of the contrast by unit, neuron and head, with intervals, and of the matching.

    Raises:
        RunError: The run lacks the token or datum, or too few datums are left on one side; or, to
            confirm, it has no held-out text that shows the property, or no model to silence.

    Example:
        >>> moved = ontogeny.behaviour("runs/demo", ontogeny.Predicate(contains="w3"))
    """
    opened, chosen = opened_run(run), config or BehaviourConfig()
    require_known(opened, predicate)

    def compute() -> Behaviour:
        if confirm is None:
            return analyse_behaviour(opened, partial(run_job, report=progress), predicate, chosen)
        require_confirmable(opened, predicate)
        found = analyse_behaviour(opened, partial(run_job, report=progress), predicate, chosen)
        return confirm_behaviour(opened, found, predicate, confirm, progress)

    asked = (predicate, chosen, Confirmed(confirm)) if confirm else (predicate, chosen)
    question = Question.of("behaviour", *asked)
    return Keep(save, name, replace).answer(opened, question, compute, write_behaviour)


def bigrams(
    run: Run | str | PathLike[str],
    config: BigramConfig | None = None,
    *,
    save: bool = False,
    name: str = "",
    replace: bool = False,
    progress: Progress | None = None,
) -> BigramTables:
    """Find the bigrams (token, next token) whose logits the training moved most, and by which data.

    Args:
        run: A run, or the folder or prefix where it is.
        config: Which steps, which first token, how many.
        save: Also write the tables to the run.
        name: Keep the tables beside others, under ``analysis/bigrams/NAME/``.
        replace: Replace tables of another question that have the same name.
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
    opened, chosen = opened_run(run), config or BigramConfig()
    require_token(opened, chosen)
    return Keep(save, name, replace).answer(
        opened,
        Question.of("bigrams", chosen),
        lambda: find_bigrams(opened, chosen, progress),
        write_bigrams,
    )


def neurons(
    run: Run | str | PathLike[str],
    config: NeuronsConfig | None = None,
    *,
    save: bool = False,
    name: str = "",
    replace: bool = False,
    progress: Progress | None = None,
) -> NeuronClusters:
    """Cluster neurons by the datums that moved them, and find those that are polysemantic.

    Args:
        run: A run, or the folder or prefix where it is.
        config: The clustering, and how many outlier rows a neuron must have.
        save: Also write the tables to the run.
        name: Keep the tables beside others, under ``analysis/neurons/NAME/``.
        replace: Replace tables of another question that have the same name.
        progress: Called with rows read and rows in all.

    Returns:
        DataFrames of neurons, clusters, topics and the stability of the clustering.

    Raises:
        RunError: Too few neurons have enough rows.

    Example:
        >>> few = ontogeny.NeuronsConfig(min_rows=1)
        >>> grouped = ontogeny.neurons("runs/demo", few)
    """
    opened, chosen = opened_run(run), config or NeuronsConfig()

    def compute() -> NeuronClusters:
        read = partial(run_job, report=progress)
        moved = read_outlier_sums(opened, read, lifetime=chosen.lifetime)
        return group_neurons(opened, moved, chosen)

    keep = Keep(save, name, replace)
    return keep.answer(opened, Question.of("neurons", chosen), compute, write_neurons)
