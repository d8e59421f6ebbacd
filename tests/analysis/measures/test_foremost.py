"""The curves shown first: no metric with many components hides another."""

import pandas as pd

from analysis.measures.foremost import foremost


def table(run: str = "r") -> pd.DataFrame:
    """Sixteen pairs of heads that change early, a loss, a jump, and a curve without change."""
    rows = [
        (f"L0H{n % 4} > L1H{n // 4}", "composition", n + 1.0, 1.0, "gradual") for n in range(16)
    ]
    rows += [("", "loss", 30.0, 40.0, "gradual"), ("L1H0", "induction", 2.0, 50.0, "sudden")]
    rows += [
        ("L1H1", "induction", 9.0, 60.0, "steep"),
        ("", "flat", 0.0, float("nan"), "unchanged"),
    ]
    frame = pd.DataFrame(
        rows, columns=pd.Index(["component", "metric", "change", "half", "verdict"])
    )
    return frame.rename(columns={"half": "half_step"}).assign(run=run, noise=0.5)


def test_sudden_curves_come_first_and_then_the_clearest_of_each_metric():
    found = foremost(table(), 5)
    assert found["metric"].tolist() == [
        "induction",
        "composition",
        "loss",
        "induction",
        "composition",
    ]
    assert found["component"].tolist() == ["L1H0", "L0H3 > L1H3", "", "L1H1", "L0H2 > L1H3"]
    assert found.columns.tolist() == table().columns.tolist()


def test_all_that_change_are_there_once_and_no_others():
    found = foremost(table(), 100)
    assert len(found) == 19
    assert found.index.is_unique
    assert "flat" not in set(found["metric"])


def test_of_several_runs_every_metric_of_the_first_comes_before_the_second_run():
    both = pd.concat([table("a"), table("b")], ignore_index=True)
    quiet = both.assign(verdict=both["verdict"].replace("sudden", "steep"))
    found = foremost(quiet, 6)
    assert found["run"].tolist() == ["a"] * 3 + ["b"] * 3
    assert found["metric"].tolist() == ["composition", "loss", "induction"] * 2


def test_a_curve_without_noise_is_the_clearest():
    curves = table()
    curves.loc[0, "noise"] = 0.0
    assert foremost(curves, 2)["component"].tolist() == ["L1H0", "L0H0 > L1H0"]
