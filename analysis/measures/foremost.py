"""Which of many curves to show first: the clearest of each metric before the others.

A model has one loss, but a curve for each head and for each pair of heads. In the order of time the
pairs would push the loss out of a short list.
"""

import pandas as pd

SUDDEN = "sudden"


def foremost(curves: pd.DataFrame, count: int) -> pd.DataFrame:
    """Return the ``count`` foremost rows of the curves that change (``half_step`` is known).

    Sudden curves come first, then the clearest curve of each metric, then the second clearest, and
    so on: clearest is the largest change relative to the noise. Metrics keep the order of the
    table. Of several runs, all metrics of one run come before those of the next.

    Args:
        curves: Columns run, metric, component, change, noise, half_step and verdict.
        count: Largest number of rows.
    """
    changing = curves[curves["half_step"].notna()]
    clear = changing["change"] / changing["noise"].where(changing["noise"] > 0)
    own = changing.assign(
        later=changing["verdict"] != SUDDEN,
        place=clear.groupby([changing["run"], changing["metric"]]).rank(
            method="first", ascending=False, na_option="top"
        ),
        run_number=pd.factorize(changing["run"])[0],
        metric_number=pd.factorize(changing["metric"])[0],
    )
    order = ["later", "place", "run_number", "metric_number"]
    return changing.loc[own.sort_values(order, kind="stable").index[:count]]
