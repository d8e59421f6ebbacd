"""A run with attribution and ablation, and access to the rows of its tables."""

import functools
from typing import Any

import numpy as np
import pandas as pd
from reference_ablation import (
    predictions,
    without,
    write_attribution,
)
from tiny_run import copied, tiny_run

from analysis.ablation.ablate import ablate
from analysis.ablation.config import AblationConfig
from analysis.ablation.subjects import Subject
from analysis.ablation.tables import Ablation
from analysis.run.run import Run, open_run

CONFIG = AblationConfig(max_neurons=9, max_datums=20, scored_datums=7, contexts_per_token=2)
Attributed = dict[Subject, tuple[list[int], list[int]]]


@functools.cache
def prepared() -> tuple[Run, Attributed]:
    """Return a run with an attribution, and each subject's tokens and datums."""
    run = open_run(copied(tiny_run(), "memory://ablation").uri)
    return run, write_attribution(run)


@functools.cache
def ablated(config: AblationConfig = CONFIG) -> tuple[Run, Ablation]:
    run, _ = prepared()
    return run, ablate(run, config)


def subject_of(row: Any) -> Subject:
    return Subject(row.unit, row.neuron, row.level)


def rows_of(table: pd.DataFrame, subject: Subject) -> pd.DataFrame:
    number = "neuron" if "neuron" in table else "group"
    own = (table["unit"] == subject.unit) & (table[number] == subject.group)
    return table[own & (table["level"] == subject.level)]


def evaluated(subject: Subject) -> list[int]:
    return prepared()[1][subject][1][: CONFIG.max_datums]


def both(run: Run, subject: Subject, datums: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the predictions before and after ablation, both [K, T]."""
    token_NT, model = run.token_NT[datums], run.model()
    return predictions(model, token_NT), predictions(without(model, subject), token_NT)
