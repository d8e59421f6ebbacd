"""Ask a run in which directions it trained: the public function of spectra."""

from os import PathLike

from analysis.run.run import Run
from analysis.spectra.config import SpectrumConfig
from analysis.spectra.reading import chosen_layout
from analysis.spectra.spectrum import measure_spectrum, spectrum_question, write_spectrum
from analysis.spectra.tables import Spectrum
from ontogeny.answers import Keep, Progress, opened_run, report_to


def spectrum(
    run: Run | str | PathLike[str],
    config: SpectrumConfig | None = None,
    *,
    save: bool = False,
    name: str = "",
    replace: bool = False,
    progress: Progress | None = None,
) -> Spectrum:
    """Decompose a run's gradients, updates or weights over its steps into directions.

    The matrix parameters × steps is never formed: its Gram matrix is added up in pieces of
    parameters. The singular values are exact over all steps.

    Args:
        run: A run, or the folder or prefix where it is.
        config: Which matrix, what is done to its steps, and what is reported.
        save: Also write the tables to the run; a call that was killed then resumes.
        name: Keep the tables beside others, under ``analysis/spectrum/NAME/``.
        replace: Replace tables of another question that have the same name.
        progress: Called with steps gone through and in all.

    Returns:
        DataFrames ``spectra`` (numbers of each treatment of the steps, beside nulls), ``values``
        (all singular values), ``samples``, ``directions``, ``steps`` (right singular vectors),
        ``neurons`` and ``datums`` (of each direction), ``learned`` (when each neuron was moved) and
        ``low_rank``.

    Raises:
        UnitError: A pattern matches no captured unit.
        RunError: The run lacks the steps, has too few, or can neither be replayed nor has factors.
        ReplayError: Replay on this machine does not arrive at the stored checkpoints.

    Example:
        >>> few = ontogeny.SpectrumConfig(units=("layers.1.linear2.weight",), datums=0)
        >>> found = ontogeny.spectrum("runs/demo", few)
        >>> bool(found.spectra["stable_rank"][0] <= found.spectra["participation_ratio"][0])
        True
    """
    opened, chosen = opened_run(run), config or SpectrumConfig()
    chosen_layout(opened, chosen.units)

    def compute() -> Spectrum:
        report = report_to(progress)
        return measure_spectrum(opened, chosen, report, name=name, resumable=save)

    return Keep(save, name, replace).answer(
        opened, spectrum_question(chosen), compute, write_spectrum
    )
