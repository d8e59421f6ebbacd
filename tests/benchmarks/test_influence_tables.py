"""The page of results has the tables that follow from the stored values."""

from pathlib import Path

from benchmarks.harness.markdown import cell, rows
from benchmarks.influence_tables import tables

PAGE = Path(__file__).parents[2] / "docs/results.md"


def test_the_page_has_every_line_of_the_tables():
    page = PAGE.read_text(encoding="utf-8").splitlines()
    for name, lines in tables().items():
        for line in lines:
            assert line in page, f"{name}: docs/results.md lacks {line}"


def test_a_table_has_means_intervals_and_the_best_in_bold():
    columns = [{"unrolled": [0.5, 0.7], "random": [-0.1, 0.1]}, {"unrolled": [-0.2, -0.2]}]
    first, last = rows(columns, ["unrolled", "random", "path"])
    assert first.startswith("| unrolled | **0.60** (0.50 to 0.70) | **−0.20** (−0.20 to −0.20) |")
    assert last.startswith("| random (null) | 0.00 (−0.10 to 0.10) | – |")
    assert cell(None) == cell([None, float("nan")]) == "–"
    assert cell([0.25, None]) == "0.25"
