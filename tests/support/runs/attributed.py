"""Attributions of the tiny run, computed once each."""

import functools
from typing import Any

from tiny_run import tiny_run

from analysis.attribution.attribute import attribute
from analysis.attribution.config import AttributionConfig
from analysis.attribution.tables import Attribution
from analysis.measures.selection import SelectionConfig
from analysis.run.run import open_run
from cluster.local.threads import run_job

ANY = SelectionConfig(min_observations=0, max_q=1, most=4)
"""Chooses tokens even though a tiny run has few observations."""


@functools.cache
def attributed(**settings: Any) -> Attribution:
    config = AttributionConfig(**{"selection": ANY, **settings})
    return attribute(open_run(tiny_run()), run_job, config)
