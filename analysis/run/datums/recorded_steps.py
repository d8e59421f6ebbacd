"""The steps of which a run has a record: those of the segments with a table of this kind."""

import numpy as np
import pandas as pd

from analysis.run.run import Run


def recorded_steps(run: Run, kind: str) -> pd.DataFrame:
    """Return those rows of ``run.steps()`` whose segment has a table of a kind.

    Segments lack outliers or factors if they are left out (``capture.outliers.steps``), and until a
    replay adds them; with ``skip_damaged`` also if their tables are damaged.
    """
    spans = {range(shard.first_step, shard.end_step) for shard in run.shards(kind)}
    table = run.steps()
    return table[np.isin(table["step"], [step for span in spans for step in span])]
