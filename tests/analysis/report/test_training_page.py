"""The chapter on training: tables of the three analyses, and the commands for those it lacks."""

import pandas as pd
import pyarrow as pa
import pytest
from report_pages import Reader
from tiny_run import copied, tiny_run

from analysis.jobs.question import Question
from analysis.jobs.tables import write_tables
from analysis.report.pages.training_page import WANTED, training_page
from analysis.report.pages.website import CHAPTERS
from analysis.run.run import Run, open_run
from analysis.spectra.config import SpectrumConfig
from analysis.spectra.spectrum import measure_spectrum, spectrum_question, write_spectrum
from analysis.trajectory.config import TrajectoryConfig
from analysis.transitions.config import TransitionsConfig


@pytest.fixture(scope="module")
def measured() -> Run:
    """A run with tables of all three, those of the spectrum in a set with a name."""
    import ontogeny

    copied(tiny_run(), "memory://training-page")
    run = open_run("memory://training-page")
    chosen = TrajectoryConfig(metrics=("loss", "top5", "weight_norm"), steps="all", datums=9)
    ontogeny.trajectory(run, chosen, save=True)
    asked = TransitionsConfig(draws=99, states=2, record=False)
    ontogeny.transitions(run, asked, save=True)
    config = SpectrumConfig(units=("layers.1.linear2.weight",), draws=2, repeats=2, datums=0)
    found = measure_spectrum(run, config)
    write_spectrum(run, found, spectrum_question(config), "last")
    return run


def test_metrics_transitions_states_and_directions_are_drawn(measured: Run):
    page = training_page(measured)
    assert page.key in CHAPTERS
    reader = Reader(str(page.body))
    assert len(list(reader.of("section"))) == 4
    for text in ("loss", "top5", "Step of half the change", "State over training"):
        assert text in page.body
    assert "Share of each direction that lies up to a step" in page.body
    assert "Not computed" not in page.body
    assert "nan" not in page.body.lower().replace("nanda", "")


def test_tables_of_another_version_count_as_missing():
    run = open_run(copied(tiny_run(), "memory://training-page-old").uri)
    schema = pa.schema([("step", pa.int64())])
    table: pd.DataFrame = schema.empty_table().to_pandas()
    for job, names in WANTED.items():
        old = dict.fromkeys(names, schema)
        write_tables(run, job, dict.fromkeys(names, table), old, Question.of(job))
    assert training_page(run).body.count("Not computed") == 4


def test_each_section_names_the_command_that_makes_its_tables():
    page = training_page(open_run(tiny_run()))
    for job in ("trajectory", "transitions", "spectrum"):
        assert f"ontogeny {job} {tiny_run()}" in page.body
