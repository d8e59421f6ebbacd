"""The steps of which a run has a record, and the datums that they visit."""

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


def recorded_datums(run: Run, kind: str, steps: range) -> np.ndarray:
    """Return the datums that those of these steps visit that are recorded, step by step, int64.

    ``kind``: as for ``recorded_steps``. A datum is there once for each visit.
    """
    table = recorded_steps(run, kind)
    now = table[table["step"].between(steps.start, steps.stop - 1)]
    return np.concatenate([np.zeros(0, np.int64), *now["datums"]])
