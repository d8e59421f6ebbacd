"""Numbers of the report: their format, and the timeline of outliers."""

from dataclasses import replace

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_run import report_run
from tiny_run import tiny_run

from analysis.jobs.tables import read_question
from analysis.report.drawing import markup
from analysis.report.pages.report_data import split_windows
from analysis.report.timeline import TIMELINE, CountOutliers, read_timeline
from analysis.run.run import Run, open_run
from capture.errors import ShardError
from cluster.local.threads import run_job

# --- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "text"),
    [
        (markup.integer(1234567), "1,234,567"),
        (markup.integer(float("nan")), "–"),
        (markup.decimals(-0.5, 2), "−0.50"),
        (markup.decimals(float("inf")), "∞"),
        (markup.significant(0.00012345), "0.000123"),
        (markup.significant(123456.0), "123,456"),
        (markup.significant(1.5e-9), "1.50e−09"),
        (markup.percent(0.1234, 1), "12.3 %"),
        (markup.probability(1e-9), "< 0.001"),
    ],
)
def test_numbers_are_formatted(written: str, text: str) -> None:
    assert written == text


def test_windows_are_split_by_neuron_and_token() -> None:
    table = pd.DataFrame(
        {
            "unit": ["b", "a", "a", "a"],
            "group": [0, 1, 1, 1],
            "token_id": [5, 7, 7, 5],
            "token": ["five", "seven", "seven", "five"],
            "window": [0, 1, 0, 0],
            "first_step": [0, 10, 0, 0],
            "end_step": [10, 20, 10, 10],
            "weight": [1.0, 2.0, 3.0, 4.0],
            "expected": [0.5, 0.5, 0.5, 0.5],
        }
    )
    found = split_windows(table)
    assert found.keys() == {("b", 0, 5), ("a", 1, 7), ("a", 1, 5)}
    seven = found["a", 1, 7]
    assert (seven.token, seven.edge_B1.tolist()) == ("seven", [0, 10, 20])
    assert seven.weight_B.tolist() == [3.0, 2.0]
    assert split_windows(table.head(0)) == {}


# --- timeline of outliers -------------------------------------------------------------------------


def count_job(run: Run) -> CountOutliers:
    return CountOutliers(tuple(run.layout.names), run.steps_done, 5)


@given(order=st.permutations(range(4)))
@settings(max_examples=10)
def test_outliers_counted_in_any_order_of_shards_give_the_same_table(order: list[int]) -> None:
    run = open_run(tiny_run())
    shards = run.shards("outliers")
    found = run_job(count_job(run), [shards[index] for index in order])
    wanted = run_job(count_job(run), shards)
    pd.testing.assert_frame_equal(found, wanted, rtol=1e-12)


def test_the_timeline_equals_grouping_all_outliers() -> None:
    run = open_run(tiny_run())
    found = run_job(count_job(run), run.shards("outliers")).query("rows > 0")
    shifts = run.shifts()
    groups = shifts.assign(first_step=shifts["step"] // 5 * 5).groupby(
        ["unit", "first_step"], observed=True
    )
    wanted = groups["abs_diff"].agg(rows="size", size="sum")
    found = found.set_index(["unit", "first_step"]).sort_index()
    assert found["rows"].to_dict() == wanted["rows"].to_dict()
    assert found["size"].to_dict() == pytest.approx(wanted["size"].to_dict())
    assert (found["end_step"] <= 24).all()


def test_a_second_report_reads_no_shards() -> None:
    run = report_run("memory://report-once", "attribute")
    first = read_timeline(run, run_job)
    question = read_question(run, "report")
    assert question.line() == "report max_bins=60"
    assert question.steps == run.steps_done
    assert "torch" in question.versions
    pd.testing.assert_frame_equal(read_timeline(run, None), first)  # type: ignore[arg-type]
    assert list(first.columns) == TIMELINE.names


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"units": ("layers.0.linear1.weight",)}, "has rows of layers.0.linear1.bias"),
        ({"num_steps": 3}, "has rows of other steps"),
    ],
)
def test_rows_of_other_units_or_steps_raise(change: dict, problem: str) -> None:
    run = open_run(tiny_run())
    with pytest.raises(ShardError, match=problem):
        run_job(replace(count_job(run), **change), run.shards("outliers"))
