"""The text and the page of a trajectory say what its table says."""

from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from analysis.jobs.question import Question
from analysis.trajectory.metrics.row import Row
from analysis.trajectory.page.page import trajectory_page
from analysis.trajectory.page.summary import curves, summarise
from analysis.trajectory.tables import Trajectory

STEPS = [0, 1, 10, 100, 1000]


def made(values: dict[tuple[str, str], list[float]], error: float = 0.01) -> Trajectory:
    """A trajectory with these curves; the null of each is 0.5."""
    rows = [
        (step, *Row(metric, component, value, 10, error, 0.5))
        for (metric, component), curve in values.items()
        for step, value in zip(STEPS, curve, strict=True)
    ]
    trajectory = pd.DataFrame(rows, columns=pd.Index(["step", *Row._fields]))
    names = [*dict.fromkeys(metric for metric, _ in values), "lens"]
    metrics = pd.DataFrame(
        {
            "metric": names,
            "unit": "nats",
            "meaning": "what it <means>",
            "null": "a null",
            "omitted": ["", *[""] * (len(names) - 2), "needs layers"],
        }
    )
    checkpoints = pd.DataFrame({"step": STEPS, "source": "checkpoint"})
    return Trajectory(trajectory, metrics, checkpoints)


def test_a_steady_curve_has_its_ends_and_the_place_of_half_its_change() -> None:
    (line,) = summarise(made({("loss", ""): [8, 7.5, 7, 3, 2]}))
    assert line == (
        "loss: 8.00 to 2.00 nats; null 0.500; half of the change came between steps 10 and 100."
    )


def test_a_curve_that_turns_has_its_extreme() -> None:
    (line,) = summarise(made({("kl", "unigram"): [1.8, 1.2, 0.52, 0.9, 1.03]}))
    assert line == "kl unigram: 1.80 to 1.03 nats; null 0.500; lowest 0.520 at step 10."


def test_a_change_within_its_error_is_no_change() -> None:
    (line,) = summarise(made({("loss", ""): [2.0, 2.0, 2.01, 2.0, 2.02]}, error=0.01))
    assert line.endswith("; the ends differ by less than their error.")


def test_rounding_is_no_change_and_equal_ends_are_told_once() -> None:
    (line,) = summarise(made({("weight_mean", ""): [-0.0013, -0.0013 + 6e-9, *[-0.0013] * 3]}))
    assert line == "weight_mean: constant."
    (line,) = summarise(made({("loss", ""): [2.0, 2.0, 2.0001, 2.0001, 2.0002]}, error=1e-6))
    assert line.startswith("loss: 2.00 nats, at the end 0.0002")


def test_of_many_components_the_most_changed_is_described() -> None:
    heads = {("induction", f"L0H{n}"): [0.1, 0.1, 0.1, 0.1, 0.1 + n / 10] for n in range(8)}
    (line,) = summarise(made(heads))
    assert line.startswith("induction L0H7: 0.100 to 0.800 nats")
    assert line.endswith("6 components more.")  # L0H0 is constant


def test_a_probe_has_the_steps_from_which_it_is_above_70_and_90_percent() -> None:
    (line,) = summarise(made({("probe", "layer 0"): [0.5, 0.6, 0.71, 0.89, 0.95]}))
    assert "; above 70 % from step 10; above 90 % from step 1,000; " in line
    (line,) = summarise(made({("probe", "layer 0"): [0.5, 0.6, 0.7, 0.8, 0.85]}))
    assert "above 70 % from step 100" in line
    assert "90 %" not in line


def test_values_that_are_not_finite_are_left_out() -> None:
    found = made({("noise", ""): [np.nan, 1, 2, np.inf, 3]})
    (curve,) = curves(found, "noise")
    assert summarise(found)[-1] == "noise: 2 of 5 values are not finite and left out."
    assert curve.step_M.tolist() == [1, 10, 1000]


class Outline(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.found.append(tag)


@pytest.mark.parametrize("count", [1, 6, 9])
def test_the_page_has_one_plot_and_one_table_for_each_metric(count: int) -> None:
    curves = {("loss", ""): [5.0, 4, 3, 2, 1]}
    curves |= {("head", f"L0H{n}"): [0.1, 0.2, 0.3, 0.4, n / 10] for n in range(count)}
    page = trajectory_page(made(curves), Question("trajectory", {}, {}), "runs/<x>").decode()
    outline = Outline()
    outline.feed(page)
    assert outline.found.count("svg") == outline.found.count("table") == 2
    assert outline.found.count("script") == outline.found.count("x") == 0
    assert "needs layers" in page
    assert "what it &lt;means&gt;" in page.lower()
    lines_in_background = page.count('class="line s0"')
    assert (lines_in_background > 0) == (count > 6)
