"""Compute the record of lifetime shifts of a run, and store it in ``RUN/analysis/lifetime/``.

One pass goes over all steps, from last to first (``analysis.lifetime.backward``). Of each step it
keeps the largest lifetime shifts, by the rule that the run's own outliers follow
(``capture.outliers``), and the norms by token (``analysis.lifetime.norms``). It also sums all
lifetime shifts of all datums: with the decay of the initial weights, they are the change of the
weights over the run (the law Lifetime). The record is not stored if they are not.

The marker is written last, as with all tables, and names the steps that the run had. When the run
has grown, the record is computed again.

Shapes: P captured parameter.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor

from analysis.jobs.question import Question
from analysis.jobs.tables import marker_key, put_marker
from analysis.lifetime.backward import MAX_BYTES, BackwardStep, backward_steps
from analysis.lifetime.contributions import ContributionSums
from analysis.lifetime.norms import NormSums
from analysis.lifetime.tables import CONTRIBUTIONS_KEY, FOLDER, JOB, UNITS, norms_key, outliers_key
from analysis.run.run import Run
from capture.errors import AuditError, StoreAwayError, StoreError
from capture.format.markers import File, Marker
from capture.gradients.dense import sum_shifts
from capture.optim.update import BFLOAT16_ROUNDING
from capture.shards import encoding as shards
from capture.shifts.outliers import find_outliers
from capture.shifts.shift_buffer import ShiftBuffer
from capture.store.access import require_writable

if TYPE_CHECKING:
    from capture.optim.lifetime import Persistence

TOLERANCE = {"float32": 1e-3, "float16": 2e-3}
"""Largest accepted share of the change that is missed, by precision of stored factors."""
FLOAT32_ROUNDING = 2.0**-24
"""Relative error of a stored weight; each step adds one."""
Report = Callable[[int, int], None]
"""Called after every step with the number of steps done and of all."""


def record_lifetimes(
    run: Run, report: Report = lambda done, wanted: None, *, max_bytes: int = MAX_BYTES
) -> None:
    """Compute and store the record of all committed steps in ``run.tables``.

    ``max_bytes``: bound on the memory for replayed steps. Raises ``RunError`` if the run has no
    outliers, or can neither be replayed nor has stored factors, ``ReplayError`` if this machine
    does not arrive at the stored checkpoints, ``AuditError`` if the law Lifetime does not hold, and
    ``StoreError`` if the place cannot be written.
    """
    run.require_shards("outliers")
    require_place(run)
    run.tables.delete(marker_key(JOB))
    for key in run.tables.keys(FOLDER):
        if key.endswith(".parquet"):
            run.tables.delete(key)
    recording = Recording(run, NormSums.of(run), ContributionSums.of(run))
    steps = backward_steps(run, max_bytes)
    for done, step in enumerate(steps, 1):
        recording.add(step)
        report(done, run.steps_done)
    decay = initial_decay(run, steps.after)
    units = unit_frame(run, recording.shifts, decay)
    if run.config.capture.loss_positions == "all":
        require_whole(run, units)
    rows = pa.Table.from_pandas(units, UNITS, preserve_index=False)
    recording.put(f"{FOLDER}/units.parquet", "analysis", rows)
    sums = recording.contributions
    recording.put(CONTRIBUTIONS_KEY, "analysis", sums.table())
    neurons = sums.neuron_table(recording.shifts, decay)
    recording.put(f"{FOLDER}/neurons.parquet", "analysis", neurons)
    marker = Marker(0, run.steps_done, tuple(recording.files))
    put_marker(run, marker_key(JOB), marker, Question.of(JOB, run.config.capture.outliers))


def require_place(run: Run) -> None:
    """Raise ``StoreError`` unless the record can be written."""
    try:
        require_writable(run.tables, FOLDER)
    except StoreAwayError:
        raise
    except StoreError as error:
        remedy = f"{error.remedy}. " if error.remedy else ""
        remedy += (
            "Lifetime shifts are stored. Keep them elsewhere: --to PLACE, or open_run(tables=…)"
        )
        raise StoreError(error.where, error.problem, remedy) from error


@dataclass(eq=False)
class Recording:
    """What was computed so far."""

    run: Run
    norms: NormSums
    contributions: ContributionSums
    files: list[File] = field(default_factory=list)
    buffer: ShiftBuffer | None = None
    total_P: Tensor = field(init=False)
    """Sum of all lifetime shifts, float64."""
    pieces: list[dict[str, np.ndarray]] = field(default_factory=list)
    """Outliers of the open segment, last step first."""

    def __post_init__(self) -> None:
        self.total_P = torch.zeros(self.run.layout.size, dtype=torch.float64)

    def add(self, step: BackwardStep) -> None:
        """Add a step, the last one first; stores the segments and windows that are complete."""
        from capture.training.segments import outlier_rows  # loads the training engine

        if self.buffer is None:
            device = next(iter(step.factors.values()))[0].delta_NTO.device
            self.buffer = ShiftBuffer(self.run.layout, len(step.datum_N), device)
        config = self.run.config.capture.outliers
        scale, by_entry = step.multipliers
        found = find_outliers(self.buffer, step.factors, scale, config, by_entry)
        total_P = sum_shifts(step.factors, self.run.layout, scale, by_entry)
        self.total_P += total_P.cpu().double()
        self.pieces.append(outlier_rows(step.step, found, np.array(step.datum_N)))
        self.contributions.add(step)
        for window, table in self.norms.add(step):
            self.put(norms_key(window), "analysis", table)
        for number, segment in enumerate(self.run.segments):
            if segment.first_step == step.step:
                self.put_outliers(number, step.step)

    @property
    def shifts(self) -> dict[str, Tensor]:
        """Sum of all lifetime shifts of each unit, float64."""
        parts = self.total_P.split(self.run.layout.sizes)
        shapes = self.run.layout.shapes
        return {name: own.view(shapes[name]) for name, own in zip(shapes, parts, strict=True)}

    def put_outliers(self, segment: int, first_step: int) -> None:
        """Store the outliers of a segment."""
        from capture.training.segments import OpenSegment, outlier_table

        done = OpenSegment(first_step, outliers=self.pieces[::-1])
        self.pieces = []
        self.put(outliers_key(segment), "outliers", outlier_table(done, self.run.layout))

    def put(self, key: str, kind: str, rows: pa.Table) -> None:
        data = shards.encode(rows)
        self.run.tables.put(key, data)
        self.files.append(File.of(key, kind, data, rows.num_rows))


# --- the law --------------------------------------------------------------------------------------


def initial_decay(run: Run, first: "Mapping[str, Persistence]") -> dict[str, Tensor]:
    """Return what decay took from the initial weights of each unit, float64.

    ``first``: the persistence of each unit at the start of the run.
    """
    initial = run.checkpoint(0)
    kept = {
        name: torch.as_tensor(first[name].weight, dtype=torch.float64).cpu()
        for name in run.layout.names
    }
    return {name: (own - 1) * initial[name].double() for name, own in kept.items()}


def unit_frame(run: Run, shifts: Mapping[str, Tensor], decay: Mapping[str, Tensor]) -> pd.DataFrame:
    """Return ``UNITS`` from the terms of the law by unit."""
    initial, last = run.checkpoint(0), run.checkpoint()
    rows = []
    for name in run.layout.names:
        change = last[name].double() - initial[name].double()
        left = float((change - shifts[name] - decay[name]).norm())
        parts = {"change": change, "shifts": shifts[name], "decay": decay[name]}
        norms = {column: float(part.norm()) for column, part in parts.items()}
        missed = left / norms["change"] if norms["change"] else left
        rows.append({"unit": name, **norms, "missed": missed})
    return pd.DataFrame(rows)


def require_whole(run: Run, units: pd.DataFrame) -> None:
    """Raise ``AuditError`` if lifetime shifts and decay of all units miss their change.

    Single units are not judged: where the gradient is 0 but for rounding, as that of the biases of
    attention keys, Adam makes a change of the usual size out of the rounding.
    """
    allowed = TOLERANCE[run.config.capture.factors.precision if run.from_custom_loop else "float32"]
    if run.config.training.precision == "bfloat16":
        allowed = max(allowed, BFLOAT16_ROUNDING)
    size_U, names = units["change"].where(units["change"] > 0, 1), ["change", "shifts", "decay"]
    missed = float(np.linalg.norm(units["missed"] * size_U))
    parts = float(np.linalg.norm(units[names].max(axis=1)))
    weights = run.layout.flatten(run.checkpoint()).double()
    rounding = run.steps_done**0.5 * FLOAT32_ROUNDING * float(weights.norm())
    if not missed <= allowed * parts + rounding:
        worst = units.iloc[int(units["missed"].to_numpy().argmax())]
        problem = f"has lifetime shifts and decay that miss {missed / parts:.1e} of the change of "
        problem += f"the weights (of {worst['unit']}: {worst['missed']:.1e})"
        raise AuditError(run.uri, problem, "No lifetime shifts were stored")
