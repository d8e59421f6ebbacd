"""Check what capture records of a user's own model and data against slower methods.

The checks use the first batches of a configuration. They compare the captured gradient of a datum
with a backward pass for that datum alone, with ``torch.func``, and with its gradient in another
batch; the sum of the shifts with the applied update; the outliers with a sort of all shifts; and,
for Hugging Face models, ablation by ``capture.parts`` with weights set to zero.
For a large model they use a sample of the units, so that no dense tensor exceeds 256 MiB.
Nothing is written. ``capture.maintenance.probe`` derives the allowed difference.

Shapes: D datum of the sample, P parameter of the sample, K outlier.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from capture.config.settings import Config
from capture.corpus.datums import load_corpus
from capture.device import deterministic
from capture.engine.audit import discrepancies
from capture.engine.build import build_engine, complete_config
from capture.engine.engine import Engine
from capture.engine.left_out import batch_of
from capture.engine.observer import to_device
from capture.engine.step_plan import StepPlan
from capture.errors import AuditError, ConfigError, UnitError
from capture.gradients.dense import slice_datums, sum_shifts
from capture.gradients.factors import Factors
from capture.gradients.layout import Layout
from capture.maintenance.probe import (
    Probe,
    captured_factors,
    in_another_batch,
    make_probe,
    one_at_a_time,
)
from capture.models.huggingface import HFModel
from capture.models.kept_mode import kept_mode
from capture.parts import parted
from capture.parts.finding import TOLERANCE
from capture.parts.silencing import silencing_error
from capture.shifts.outliers import OutlierConfig, find_outliers
from capture.shifts.shift_buffer import ShiftBuffer

STEPS = 2
"""Number of updates that are checked. The second one uses the optimizer state of the first."""
SMALL_SHARE = 2.0**-6
"""The error of a unit is relative to its gradient, or to this share of the whole gradient if that
is larger."""

MIXED = (
    "a datum's gradient depends on its batch: some module mixes datums, as BatchNorm does, or "
    "draws random numbers. The record of a datum would contain parts of others. Replace that module"
)
MISREAD = (
    "capture misreads how this parameter is used. Exclude it with capture.units, or set "
    "capture.fallback=vmap, and please report it"
)
LOST = "the shifts do not add up to the optimizer's update, so the record would be incomplete"
MISPLACED = "ontogeny ablate misreads where this part of the model is; name it with ModelParts"
UNSORTED = "the outliers are not the largest shifts; please report it"


@dataclass(frozen=True)
class Check:
    """One comparison. It failed if ``found`` exceeds ``allowed``."""

    what: str
    found: float
    """Largest relative difference; NaN if the comparison could not be made."""
    allowed: float
    detail: str
    """The unit that differs most, or the reason why no comparison could be made."""
    meaning: str
    """What a failure of this check means, and what to do."""

    @property
    def made(self) -> bool:
        """Whether the comparison could be made."""
        return not math.isnan(self.found)

    @property
    def holds(self) -> bool:
        """Whether the comparison was passed, or could not be made."""
        return not self.made or self.found <= self.allowed


def self_check(config: Config) -> Iterator[Check]:
    """Yield all comparisons as they are made. Raises the errors that a capture would raise."""
    config = complete_config(config)
    plan = StepPlan(config, load_corpus(config.corpus, batch=config.training.batch))
    with deterministic():
        engine = build_engine(plan, frozenset({"outliers"}), beginning=True)
        probe, mates = make_probe(plan, engine)
        factors = captured_factors(probe)
        found_DP = probe.dense(factors, range(probe.num))
        if not found_DP.isfinite().all():
            problem = "has gradients that are NaN or infinite"
            raise AuditError("the first batch", problem, "Look at the model's initial weights")
        alone = compare(probe, "one backward pass per datum", found_DP, one_at_a_time(probe))
        other = compare(
            probe,
            "the same datum in another batch and slot",
            found_DP,
            in_another_batch(probe, *mates),
        )
        yield replace(alone, meaning=MISREAD if other.holds else MIXED)
        yield check_vmap(probe, found_DP, other.holds)
        yield replace(other, meaning=MIXED)
        yield check_outliers(probe, factors, found_DP, config)
        yield check_update(plan, engine)
        if isinstance(engine.model, HFModel):
            yield check_silencing(engine.model, probe.token_NT)


def check_vmap(probe: Probe, found_DP: Tensor, unmixed: bool) -> Check:
    """Compare with per-sample gradients by ``torch.func``.

    ``unmixed``: whether the gradients do not depend on the batch, which decides the explanation.
    """
    kept = slice(probe.num)
    batch = (probe.token_NT[kept], probe.target_NT[kept], probe.masks_of(range(probe.num)))
    what = "torch.func.vmap(grad)"
    try:
        factors = probe.engine.vmap_factors(
            list(probe.units), *batch, probe.target_NT.numel(), scored=probe.scored
        )
    except UnitError as error:
        return Check(what, math.nan, probe.allowed, f"not possible: {error.problem}", "")
    check = compare(probe, what, found_DP, probe.dense(factors, range(probe.num)))
    return replace(check, meaning=MISREAD if unmixed else MIXED)


def compare(probe: Probe, what: str, found_DP: Tensor, wanted_DP: Tensor) -> Check:
    """Compare two sets of gradients [D, P] by unit, and report the unit that differs most."""
    floor_D = wanted_DP.norm(dim=1) * SMALL_SHARE
    sizes = probe.layout.sizes
    worst, where = 0.0, ""
    parts = zip(probe.units, found_DP.split(sizes, 1), wanted_DP.split(sizes, 1), strict=True)
    for name, found_DS, wanted_DS in parts:
        missed_D = (found_DS - wanted_DS).norm(dim=1)
        size_D = torch.maximum(wanted_DS.norm(dim=1), floor_D)
        error = float(torch.where(missed_D == 0, 0.0, missed_D / size_D).max())
        if not error <= worst:  # also true for NaN
            worst, where = (error if math.isfinite(error) else math.inf), name
    return Check(what, worst, probe.allowed, where, MISREAD)


def check_outliers(probe: Probe, factors: Factors, dense_DP: Tensor, config: Config) -> Check:
    """Compare the k largest shifts of each datum with those sorted from the dense gradients.

    Those of each unit, if the configuration records them by unit.
    """
    own = slice_datums({name: factors[name] for name in probe.units}, 0, probe.num)
    by_unit = config.capture.outliers.scope == "unit"
    parts = dense_DP.split(probe.layout.sizes if by_unit else [dense_DP.shape[1]], 1)
    k = min(config.capture.outliers.k, max(part_DS.shape[1] for part_DS in parts))
    buffer = ShiftBuffer(probe.layout, probe.num, dense_DP.device)
    outlier_config = OutlierConfig(k=k, scope="unit" if by_unit else "datum")
    found = find_outliers(buffer, own, 1.0, outlier_config)
    wanted = [part_DS.abs().topk(min(k, part_DS.shape[1]), 1).values for part_DS in parts]
    size_DK, wanted_DK = found.shift_M.view(probe.num, -1).abs(), torch.cat(wanted, 1)
    found_parts = size_DK.split([part_DK.shape[1] for part_DK in wanted], 1)
    size_DK = torch.cat([part_DK.sort(1, descending=True).values for part_DK in found_parts], 1)
    at_M = dense_DP[found.slot_M, found.column_M]
    largest = wanted_DK.max().clamp(min=torch.finfo(torch.float32).tiny)
    error = max((size_DK - wanted_DK).abs().max(), (found.shift_M - at_M).abs().max()) / largest
    what = f"outliers: top {k:,} of the dense gradients{' by unit' if by_unit else ''}"
    return Check(what, float(error), probe.allowed, "", UNSORTED)


def check_silencing(model: HFModel, token_NT: Tensor) -> Check:
    """Compare silenced neurons and heads, as ``ontogeny ablate`` does, with weights set to zero."""
    what = "a neuron or head silenced = its weights at zero"
    try:
        with kept_mode(model):
            found = silencing_error(parted(model, token_NT))
    except ConfigError as error:
        return Check(what, math.nan, TOLERANCE, f"not possible: {error.problem}", "")
    if found is None:
        detail = "not possible: neither heads nor neurons were found"
        return Check(what, math.nan, TOLERANCE, detail, "")
    return Check(what, found[0], TOLERANCE, found[1], MISPLACED)


def check_update(plan: StepPlan, engine: Engine) -> Check:
    """Compare Σ shifts + carry with the change of the weights, as the audit does."""
    layout, worst = Layout.of(engine.units), 0.0
    token_NT, target_NT = to_device(plan.corpus.train, engine.device)
    for planned in islice(plan.planned_steps(0), STEPS):
        before_P = layout.flatten(engine.units)
        batch = batch_of(plan, token_NT, target_NT, planned)
        step = engine.step(*batch, step=planned.step, epoch=planned.epoch)
        recorded = step.last.factors if step.last else step.factors
        total_P = sum_shifts(recorded, layout, step.scale, step.preconditioner)
        after_P = layout.flatten(engine.units)
        found = discrepancies(step, layout, total_P, before_P, after_P, plan.config.training)
        errors = [each.unexplained for each in found]
        worst = max(worst, *(error if math.isfinite(error) else math.inf for error in errors))
    what = f"Σ shifts + carry = the applied update, {STEPS} steps"
    return Check(what, worst, plan.config.capture.audit_tolerance, "", LOST)
