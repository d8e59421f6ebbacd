"""Ask a run about one parameter by name."""

from os import PathLike

from analysis.jobs.question import Question
from analysis.parameters.config import ParameterConfig
from analysis.parameters.tables import ParameterTokens
from analysis.parameters.tokens import parameter_tokens, write_parameter
from analysis.run.run import Run
from ontogeny.answers import Keep, opened_run


def parameter(
    run: Run | str | PathLike[str],
    config: ParameterConfig,
    *,
    save: bool = False,
    name: str = "",
    replace: bool = False,
) -> ParameterTokens:
    """Rank the tokens of the datums that have one parameter among their outliers.

    The rows themselves, with step, datum, position and shift, are
    ``run.shifts(unit=…, index=…)``.

    Args:
        run: A run, or the folder or prefix where it is.
        config: The parameter, which of its datums' tokens count, and how tokens are chosen.
        save: Also write the tables to the run, under ``analysis/parameter/``.
        name: Keep the tables beside others, under ``analysis/parameter/NAME/``.
        replace: Replace tables of another question that have the same name.

    Returns:
        DataFrames ``tokens`` (one row a token: count, relative frequency, rank by each, whether it
        was chosen, whether datums drawn at random reach as much) and ``about`` (one row: number of
        outliers and datums, direction, largest shift).

    Raises:
        UnitError: The parameter was not captured.
        RunError: It has no outliers in these steps, or the run lacks the steps.

    Example:
        >>> rows = ontogeny.open_run("runs/demo").shifts(unit="layers.1.linear2.weight")
        >>> index = int(rows["index"].mode()[0])  # the parameter with the most outliers
        >>> asked = ontogeny.ParameterConfig(unit="layers.1.linear2.weight", index=index)
        >>> found = ontogeny.parameter("runs/demo", asked)
        >>> found.about["rows"].item() == rows["index"].tolist().count(index)
        True
    """
    opened = opened_run(run)
    return Keep(save, name, replace).answer(
        opened,
        Question.of("parameter", config),
        lambda: parameter_tokens(opened, config),
        write_parameter,
    )
