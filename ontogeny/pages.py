"""Write the pages of a report."""

from collections.abc import Mapping
from functools import partial
from os import PathLike

from analysis.report.build import ReportConfig, gather_report_data, report_store, write_report
from analysis.run.run import Run
from cluster.local.threads import run_job
from ontogeny.answers import Progress, opened_run


def report(
    run: Run | str | PathLike[str],
    *,
    to: str | None = None,
    max_neurons: int | None = ReportConfig.max_neurons,
    attribution: str = "",
    sets: Mapping[str, str] | None = None,
    compare: Run | str | PathLike[str] | None = None,
    progress: Progress | None = None,
) -> str:
    """Write static HTML pages of a run and of the tables that its analyses left there.

    Args:
        run: A run, or the folder or prefix where it is.
        to: Folder or prefix for the pages; the run's own ``report/`` by default.
        max_neurons: Pages for so many neurons, those with most evidence first; None for all.
        attribution: Name of the attribution that is shown; by default the one without a name.
        sets: Analysis → name of its tables that are shown, as in ``{"ablate": "heads"}``; likewise.
        compare: Another run to compare with: figures, losses, and tokens of neurons.
        progress: Called with rows read and rows in all.

    Returns:
        Where the first page is: ``…/index.html``.

    Raises:
        RunError: ``attribute`` has not been saved for neurons of the run, or of the one to compare
            with, or ``to`` holds something else.

    Example:
        >>> ontogeny.report("runs/demo", to="report")
        'report/index.html'
    """
    opened = opened_run(run)
    store = report_store(opened, to)
    config = ReportConfig(max_neurons=max_neurons, attribution=attribution, sets=sets or {})
    job = partial(run_job, report=progress)
    other = None if compare is None else opened_run(compare)
    material = gather_report_data(opened, job, config, keep=to is None, other=other)
    return write_report(material, store).index
