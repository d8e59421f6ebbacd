"""The comparison of two runs: overlap equals a slow loop, and pages say what can be compared."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from report_pages import Reader, contents
from report_run import NEURONS, TABLES, report_run
from tiny_run import make_run

import ontogeny
from analysis.jobs.tables import write_tables
from analysis.report.build import ReportConfig, gather_report_data, report_store, write_report
from analysis.report.pages.comparison.compared_runs import ALL, compare_runs, paired_neurons
from analysis.report.pages.comparison.comparison_page import KEY, datums_per_step, facts
from analysis.report.pages.sources import WANTED, read_sources
from analysis.run.run import Run, open_run
from capture.errors import RunError
from cluster.cli import main
from cluster.local.threads import run_job


def tokens(seed: int, groups: range, unit: str = "u") -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = [
        {"unit": unit, "group": group, "token": f"w{token}"}
        for group in groups
        for token in rng.permutation(12)[: 1 + group % 5]
    ]
    return pd.DataFrame(rows)


def test_overlap_and_chance_equal_a_slow_loop() -> None:
    one, other = tokens(0, range(9)), tokens(1, range(3, 14))
    sets = [
        {group: set(part["token"]) for group, part in table.groupby("group")}
        for table in (one, other)
    ]
    pairs = paired_neurons(one, other)
    assert pairs["group"].tolist() == list(range(3, 9))
    for row in pairs.to_dict("records"):
        group = row["group"]
        own = sets[0][group]
        overlap = {other: len(own & held) / len(own | held) for other, held in sets[1].items()}
        assert row["jaccard"] == pytest.approx(overlap.pop(group))
        assert row["chance"] == pytest.approx(np.mean(list(overlap.values())))
        assert row["shared"] == len(own & sets[1][group])
        assert (row["tokens"], row["other_tokens"]) == (len(own), len(sets[1][group]))


def test_units_that_only_one_run_has_are_left_out() -> None:
    assert len(paired_neurons(tokens(0, range(3), "a"), tokens(0, range(3), "b"))) == 0
    (pair,) = paired_neurons(tokens(0, range(1)), tokens(0, range(1))).to_dict("records")
    assert pair["jaccard"] == 1
    assert np.isnan(pair["chance"])


def compared(uri: str, other: Run, run: Run) -> Reader:
    data = gather_report_data(run, run_job, ReportConfig(max_neurons=2), other=other)
    write_report(data, report_store(run, uri))
    return Reader(contents(uri)[KEY].decode())


def test_a_copy_of_a_run_agrees_fully_and_starts_from_the_same_weights() -> None:
    run = report_run("memory://compare-a", "attribute", "faithfulness")
    other = report_run("memory://compare-b", "attribute")
    found = compare_runs(run, read_sources(run, {}), other)
    assert found.same_start
    assert set(found.same_text.values()) == {True}
    assert (found.pairs["jaccard"] == 1).all()
    assert len(found.pairs) == len(NEURONS)
    assert found.agreement["unit"].tolist()[-1] == ALL
    page = compared("memory://compare-pages", other, run)
    assert "neuron n of A began as neuron n of B" in page.text
    assert "Training text: the same; validation text: the same; vocabulary: the same." in page.text
    assert "cannot be compared" not in page.text
    assert len(page.of("svg")) == 1
    assert "A, training" in page.text
    assert "AUC of the best evidence, mean over units0.800 (target)–differs" in page.text


def test_neurons_of_different_seeds_do_not_correspond() -> None:
    run = report_run("memory://compare-a", "attribute")
    other = open_run(make_run("memory://compare-seed", "run.seed=1", "training.batch=8"))
    write_attribution(other)
    page = compared("memory://compare-seed-pages", other, run)
    assert "neurons of different seeds do not correspond" in page.text.lower()
    assert "training datums seen" in page.text  # batches differ in size


def test_micro_batches_are_parts_of_a_batch() -> None:
    run = open_run(make_run("memory://compare-micro", "training.batch=8", "training.accumulate=2"))
    write_attribution(run)
    assert facts(run, read_sources(run, {}))["batch"] == "8 datums"
    assert datums_per_step(run) == len(run.steps()["datums"][0]) == 8


def write_attribution(run: Run) -> None:
    schemas = {name: pa.schema(columns.items()) for name, columns in WANTED["attribute"].items()}
    write_tables(run, "attribute", TABLES["attribute"](run), schemas)


def test_a_run_is_not_compared_with_itself_or_with_one_that_has_no_attribution(capsys) -> None:
    run = report_run("memory://compare-a", "attribute")
    with pytest.raises(RunError, match="is the run itself"):
        compare_runs(run, read_sources(run, {}), run)
    make_run("memory://compare-bare")
    assert main(["report", run.uri, "--compare", "memory://compare-bare", "--quiet"]) == 2
    assert "memory://compare-bare: has no tables of attribute. Run: ontogeny attribute" in (
        capsys.readouterr().err
    )


def test_command_and_python_compare(tmp_path, capsys) -> None:
    run = report_run("memory://compare-a", "attribute")
    report_run("memory://compare-b", "attribute")
    options = ["--neurons", "1", "--quiet", "--to", f"{tmp_path}/report"]
    assert main(["report", run.uri, "--compare", "memory://compare-b", *options]) == 0
    first = (tmp_path / "report" / KEY).read_text()
    assert "memory://compare-b" in first
    ontogeny.report(run, to=f"{tmp_path}/again", max_neurons=1, compare="memory://compare-b")
    assert (tmp_path / "again" / KEY).read_text() == first


def test_without_another_run_the_page_names_the_option() -> None:
    run = report_run("memory://compare-a", "attribute")
    data = gather_report_data(run, run_job, ReportConfig(max_neurons=1))
    write_report(data, report_store(run))
    page = Reader(contents(f"{run.uri}/report")[KEY].decode())
    assert f"ontogeny report {run.uri} --compare OTHER" in page.text
