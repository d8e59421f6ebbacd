"""Ask a run about its neurons: the public functions of attribution and of its tests by ablation.

All take a ``Run`` or the place of one, an optional configuration, and return a frozen dataclass of
pandas DataFrames. ``save=True`` also leaves the tables in the run under ``analysis/COMMAND/``,
where ``ablate``, ``activations`` and ``report`` look for those of ``attribute``. Work is done by
threads of this process; the command line takes the same questions to a Ray cluster.
"""

from dataclasses import replace as replace_field
from functools import partial
from os import PathLike

from analysis.ablation.ablate import ablate as ablate_run
from analysis.ablation.ablate import write_ablation
from analysis.ablation.config import AblationConfig
from analysis.ablation.config import require_asked as require_ablated
from analysis.ablation.tables import Ablation
from analysis.activations.config import ActivationConfig
from analysis.activations.config import require_asked as require_measured
from analysis.activations.tables import Activations, write_activations
from analysis.activations.tables import activations as measure_activations
from analysis.attribution.attribute import attribute as attribute_run
from analysis.attribution.attribute import write_attribution
from analysis.attribution.config import AttributionConfig
from analysis.attribution.tables import Attribution
from analysis.faithfulness.confirm import ConfirmConfig, Confirmed, require_confirmable
from analysis.faithfulness.confirm import confirm as confirm_tokens
from analysis.faithfulness.faithfulness import Faithfulness, write_faithfulness
from analysis.faithfulness.faithfulness import faithfulness as evaluate_methods
from analysis.faithfulness.ground_truth import FaithfulnessConfig
from analysis.jobs.question import Question
from analysis.run.run import Run
from cluster.local.threads import run_job
from ontogeny.answers import Keep, Progress, opened_run


def attribute(
    run: Run | str | PathLike[str],
    config: AttributionConfig | None = None,
    *,
    lifetime: bool = False,
    confirm: ConfirmConfig | None = None,
    save: bool = False,
    name: str = "",
    replace: bool = False,
    progress: Progress | None = None,
) -> Attribution:
    """Find which tokens and datums moved which neurons (rows, heads, parameters) most.

    The answer says what happened while the model was trained. It does not say what the model would
    be without these data; see ``ablate`` and ``faithfulness`` for what depends on a neuron.

    Args:
        run: A run, or the folder or prefix where it is.
        config: What is asked; by default the evidence that ablation agreed with best: tallies
            where the run has them, else outliers.
        lifetime: Count lifetime shifts, what each gradient still contributes to the last weights,
            instead of shifts of one step; sets ``config.lifetime``. The run is replayed once, and
            lifetime shifts are kept in ``run.tables``, also without ``save``.
        confirm: Test each token by ablating the neuron on held-out text, beside null models.
        save: Also write the tables to the run.
        name: Keep the tables beside others, under ``analysis/attribute/NAME/``.
        replace: Replace tables of another question that have the same name.
        progress: Called with rows read and rows in all, then with ablated datums.

    Returns:
        DataFrames ``groups`` (one row a neuron), ``tokens`` (a neuron and a token that stands out
        in it), ``windows`` (when), ``datums`` (which datums moved it most), ``confirmed`` and
        ``nulls`` (the test by ablation; empty without ``confirm``) and others.

    Raises:
        RunError: The run has no committed steps, or lacks the record that ``config`` asks for;
            with ``confirm``, it has no held-out text or a model that cannot be ablated; with
            ``lifetime``, it is of a custom loop without stored factors.
        ReplayError: With ``lifetime``, replay on this machine does not arrive at the stored
            checkpoints.
        StoreError: With ``lifetime``, ``run.tables`` cannot be written.

    Example:
        >>> found = ontogeny.attribute("runs/demo", save=True)
        >>> found.groups.columns.tolist()
        ['level', 'unit', 'group', 'rows', 'weight', 'tokens']
        >>> in_all = ontogeny.attribute("runs/demo", lifetime=True)
        >>> in_all.tokens.columns.equals(found.tokens.columns)
        True
    """
    opened = opened_run(run)
    chosen = config or AttributionConfig.recommended(tallies=bool(opened.shards("tallies")))
    chosen = replace_field(chosen, lifetime=chosen.lifetime or lifetime)
    if confirm is not None:
        require_confirmable(opened, chosen.level)
    asked = [chosen] if confirm is None else [Confirmed(confirm), chosen]

    def compute() -> Attribution:
        found = attribute_run(opened, partial(run_job, report=progress), chosen)
        return found if confirm is None else confirm_tokens(opened, found, confirm, progress)

    keep = Keep(save, name, replace)
    return keep.answer(opened, Question.of("attribute", *asked), compute, write_attribution)


def ablate(
    run: Run | str | PathLike[str],
    config: AblationConfig | None = None,
    *,
    save: bool = False,
    name: str = "",
    replace: bool = False,
    progress: Progress | None = None,
) -> Ablation:
    """Ablate neurons, rows or heads of the trained model one at a time; measure what changes.

    Needs the tables of ``attribute(run, save=True)``: they say which neurons are ablated first and
    which tokens are notable.

    Args:
        run: A run, or the folder or prefix where it is.
        config: Which ones, replaced by what (zero, mean, resampled), on which text.
        save: Also write the tables to the run.
        name: Keep the tables beside others, under ``analysis/ablate/NAME/``.
        replace: Replace tables of another question that have the same name.
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
    opened, chosen = opened_run(run), config or AblationConfig()
    require_ablated(opened, chosen)
    return Keep(save, name, replace).answer(
        opened,
        Question.of("ablate", chosen),
        lambda: ablate_run(opened, chosen, progress),
        write_ablation,
    )


def activations(
    run: Run | str | PathLike[str],
    config: ActivationConfig | None = None,
    *,
    save: bool = False,
    name: str = "",
    replace: bool = False,
    progress: Progress | None = None,
) -> Activations:
    """Measure neurons, or what rows and attention heads do, at every position of training.

    Args:
        run: A run, or the folder or prefix where it is.
        config: What is measured (``quantity``), on which tokens, which neuron (row, head) is
            compared, at which checkpoint.
        save: Also write the tables to the run.
        name: Keep the tables beside others, under ``analysis/activations/NAME/``.
        replace: Replace tables of another question that have the same name.
        progress: Called with datums done and in all.

    Returns:
        DataFrames of statistics by token and neuron, and of the comparison of one neuron.

    Raises:
        RunError: The run has no checkpoint at the step.
        ConfigError, UnitError: A token or a neuron does not exist.

    Example:
        >>> measured = ontogeny.activations("runs/demo")
        >>> heads = ontogeny.ActivationConfig(quantity="attention-entropy")
        >>> ontogeny.activations("runs/demo", heads).ranks["max_unit"].iloc[0].endswith("self_attn")
        True
    """
    opened, chosen = opened_run(run), config or ActivationConfig()
    require_measured(opened, chosen)
    return Keep(save, name, replace).answer(
        opened,
        Question.of("activations", chosen),
        lambda: measure_activations(opened, chosen, progress),
        write_activations,
    )


def faithfulness(
    run: Run | str | PathLike[str],
    config: FaithfulnessConfig | None = None,
    *,
    save: bool = False,
    name: str = "",
    replace: bool = False,
    progress: Progress | None = None,
) -> Faithfulness:
    """Evaluate attribution methods: which of them ranks first the tokens that ablation changes?

    The ground truth is the change of log-probability on held-out text when a neuron is ablated.

    Args:
        run: A run, or the folder or prefix where it is.
        config: How many neurons, drawn at random, and on which text.
        save: Also write the tables to the run.
        name: Keep the tables beside others, under ``analysis/faithfulness/NAME/``.
        replace: Replace tables of another question that have the same name.
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
    opened, chosen = opened_run(run), config or FaithfulnessConfig()
    return Keep(save, name, replace).answer(
        opened,
        Question.of("faithfulness", chosen),
        lambda: evaluate_methods(opened, run_job, chosen, progress),
        write_faithfulness,
    )
