"""Whether capture tells the truth of a user's own model and data: slower ways to its numbers.

On the first batches of a configuration: what the tape captured of a datum against a backward pass
for that datum alone and against ``torch.func``; the same datum among others; the sum of the shifts
against the applied update; the outliers against sorting everything. Of a big model a sample of the
units, so that no dense tensor exceeds ``MOST_ENTRIES``. Nothing is written.

How far two ways may differ: with unit roundoff u, a chain of n roundings puts a result off by about
u √n (Higham & Mary 2019, A new approach to probabilistic rounding error analysis, theorem 2.4).
Every parameter makes two links of the chain, forward and back. In float32 a link is a sum, added up
in halves of halves, so of log2(terms) roundings; with bfloat16, whose products are added up in
float32, it is the product alone. ``SAFETY`` times that is allowed.

Shapes: N datum of a batch, D datum of the sample, T token, V vocabulary, P parameter of the sample,
K outlier.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from capture.config.settings import Config
from capture.corpus.datums import load_corpus
from capture.device import deterministic
from capture.engine.audit import shortfalls
from capture.engine.build import build_engine, complete
from capture.engine.engine import Engine
from capture.engine.observer import on_device
from capture.engine.step_plan import Plan
from capture.errors import AuditError, UnitError
from capture.gradients.dense import slice_datums, sum_shifts
from capture.gradients.factored_algebra import dense
from capture.gradients.factors import Factors
from capture.gradients.layout import Layout
from capture.gradients.tape import Tape
from capture.models.dropout import Masks
from capture.optim.update import BFLOAT16_ROUNDING, ROUNDING
from capture.shifts.outliers import find_outliers
from capture.shifts.shift_buffer import ShiftBuffer

DATUMS = 3
STEPS = 2
"""Updates whose sum is checked: the second has what an optimizer remembers of the first."""
MOST_ENTRIES = 2**26
"""Of any dense tensor: 256 MiB."""
SAFETY = 4
SMALL_SHARE = 2.0**-6
"""A unit with less of a datum's gradient than this is measured against this share of it."""

MIXED = (
    "a datum's gradient depends on its batch: some module mixes datums, as BatchNorm does, or "
    "draws random numbers. What is recorded of a datum would be partly others'. Replace that module"
)
MISREAD = (
    "capture misreads how this parameter is used. Leave it out with capture.units, or set "
    "capture.fallback=vmap, and please report it"
)
LOST = "shifts do not add up to what the optimizer did: the record would be incomplete"
UNSORTED = "not the largest shifts were kept; please report it"


@dataclass(frozen=True)
class Check:
    """One comparison; it failed where ``found`` exceeds ``allowed``."""

    what: str
    found: float
    """Largest relative difference; not a number where it could not be made."""
    allowed: float
    detail: str
    """Which unit differs most, or why no comparison could be made."""
    meaning: str
    """Of a failure."""

    @property
    def made(self) -> bool:
        return not math.isnan(self.found)

    @property
    def holds(self) -> bool:
        return not self.made or self.found <= self.allowed


@dataclass(frozen=True)
class Probe:
    """The sample: some units, and the first datums of the first batch."""

    engine: Engine
    units: dict[str, nn.Parameter]
    token_NT: Tensor
    target_NT: Tensor
    masks: Masks
    num: int
    """D, the datums looked at."""
    allowed: float

    @property
    def layout(self) -> Layout:
        return Layout.of(self.units)

    @property
    def scored(self) -> slice:
        """Where in the window the recorded loss counts."""
        return slice(-1, None) if self.engine.last_only else slice(None)

    def loss(self, logit_NTV: Tensor, target_NT: Tensor) -> Tensor:
        """The datums' shares of the batch's mean loss, summed."""
        logit_MV = logit_NTV[:, self.scored].float().flatten(0, 1)
        lost = F.cross_entropy(logit_MV, target_NT[:, self.scored].flatten(), reduction="sum")
        return lost / self.target_NT.numel()

    def dense(self, factors: Factors, rows: Sequence[int]) -> Tensor:
        """Gradients of these rows of a batch in all units of the sample, [D, P]."""
        kept = list(rows)
        parts = [
            dense([use.mapped(lambda x: x[kept]) for use in factors[name]], shape).flatten(1)
            for name, shape in self.layout.shapes.items()
        ]
        return torch.cat(parts, 1)

    def masks_of(self, slots: Sequence[int]) -> Masks:
        pool_NK = self.masks.pool_NK
        return Masks.none() if pool_NK is None else Masks(pool_NK[list(slots)])


def self_check(config: Config) -> Iterator[Check]:
    """All comparisons, as they are made; raises what a capture of the configuration would raise."""
    config = complete(config)
    plan = Plan(config, load_corpus(config.corpus, batch=config.training.batch))
    with deterministic():
        engine = build_engine(plan, frozenset({"outliers"}), beginning=True)
        probe, mates = make_probe(plan, engine)
        factors = captured(probe)
        found_DP = probe.dense(factors, range(probe.num))
        if not found_DP.isfinite().all():
            problem = "has gradients that are no numbers or infinite"
            raise AuditError("the first batch", problem, "Look at the model's initial weights")
        alone = compared(probe, "one backward pass per datum", found_DP, one_by_one(probe))
        other = compared(
            probe, "the same datum in another batch and slot", found_DP, among(probe, *mates)
        )
        yield replace(alone, meaning=MISREAD if other.holds else MIXED)
        yield by_vmap(probe, found_DP, other.holds)
        yield replace(other, meaning=MIXED)
        yield of_outliers(probe, factors, found_DP, config)
        yield of_update(plan, engine)


def make_probe(plan: Plan, engine: Engine) -> tuple[Probe, tuple[Tensor, Tensor]]:
    """The sample, and another batch of as many datums (at least two)."""
    token_NT, target_NT = on_device(plan.corpus.train, engine.device)
    batch = plan.config.training.batch
    order = torch.from_numpy(next(plan.turns(0)).datum_N)
    first = set(order.tolist())
    rest = torch.tensor([d for d in range(len(token_NT)) if d not in first], dtype=torch.int64)
    other = torch.cat([rest, order.flip(0)])[: max(2, batch)]
    num = min(DATUMS, batch)
    window = plan.config.corpus.window
    probe = Probe(
        engine,
        sampled(engine.units, MOST_ENTRIES // num),
        token_NT[order],
        target_NT[order],
        engine.masks(range(batch), 0, window),
        num,
        tolerance(engine, window),
    )
    return probe, (token_NT[other], target_NT[other])


def sampled(units: Mapping[str, nn.Parameter], most: int) -> dict[str, nn.Parameter]:
    """As many units as have ``most`` entries in all, spread over the model; the first at least."""
    names = list(units)
    stride = max(1, round(len(names) * 0.618))
    while math.gcd(stride, len(names)) > 1:
        stride += 1
    chosen, left = {names[0]}, most - units[names[0]].numel()
    for place in range(1, len(names)):
        name = names[place * stride % len(names)]
        if (size := units[name].numel()) <= left:
            chosen.add(name)
            left -= size
    return {name: unit for name, unit in units.items() if name in chosen}


def tolerance(engine: Engine, window: int) -> float:
    """How far rounding alone may put two ways to a gradient apart, relatively."""
    parameters = list(engine.model.parameters())
    links = 2 * len(parameters)
    if engine.config.precision == "bfloat16":
        return SAFETY * BFLOAT16_ROUNDING * math.sqrt(links)
    longest = 2 * window * max(max(parameter.shape) for parameter in parameters)
    return SAFETY * ROUNDING * math.sqrt(links * math.log2(longest))


def captured(probe: Probe) -> Factors:
    """What a capture would see of the first batch."""
    probe.engine.optimizer.zero_grad()
    _, factors, last = probe.engine.gradients(probe.token_NT, probe.target_NT, 0)
    return last.factors if last else factors


def one_by_one(probe: Probe) -> Tensor:
    """A batch of one for every datum, [D, P]."""
    engine, rows = probe.engine, []
    for slot in range(probe.num):
        with engine.autocast():
            logit_1TV = engine.model(probe.token_NT[slot : slot + 1], probe.masks_of([slot]))
        loss = probe.loss(logit_1TV, probe.target_NT[slot : slot + 1])
        grads = torch.autograd.grad(loss, list(probe.units.values()))
        rows.append(torch.cat([grad.flatten().float() for grad in grads]))
    return torch.stack(rows)


def among(probe: Probe, token_NT: Tensor, target_NT: Tensor) -> Tensor:
    """The sample's datums in another batch, at its end in opposite order, with their own masks."""
    token_NT, target_NT = token_NT.clone(), target_NT.clone()
    slots = list(range(len(token_NT)))
    places = [len(slots) - 1 - place for place in range(probe.num)]
    for place, slot in zip(places, range(probe.num), strict=True):
        token_NT[place], target_NT[place] = probe.token_NT[slot], probe.target_NT[slot]
    last = len(probe.token_NT) - 1
    order = [min(len(slots) - 1 - place, last) for place in slots]
    engine, units = probe.engine, probe.units
    split = {name: unit for name, unit in units.items() if name in engine.by_tape}
    masks = probe.masks_of(order)
    with Tape(split, len(token_NT)) as tape, engine.autocast():
        logit_NTV = engine.model(token_NT, masks)
    probe.loss(logit_NTV, target_NT).backward()
    rest = [name for name in units if name not in split]
    batch = (token_NT, target_NT, masks, probe.target_NT.numel())
    return probe.dense(
        tape.factors() | engine.each_by_vmap(rest, *batch, scored=probe.scored), places
    )


def by_vmap(probe: Probe, found_DP: Tensor, unmixed: bool) -> Check:
    kept = slice(probe.num)
    batch = (probe.token_NT[kept], probe.target_NT[kept], probe.masks_of(range(probe.num)))
    what = "torch.func.vmap(grad)"
    try:
        factors = probe.engine.each_by_vmap(
            list(probe.units), *batch, probe.target_NT.numel(), scored=probe.scored
        )
    except UnitError as error:
        return Check(what, math.nan, probe.allowed, f"not possible: {error.problem}", "")
    check = compared(probe, what, found_DP, probe.dense(factors, range(probe.num)))
    return replace(check, meaning=MISREAD if unmixed else MIXED)


def compared(probe: Probe, what: str, found_DP: Tensor, wanted_DP: Tensor) -> Check:
    """The unit in which the two differ most."""
    whole_D = wanted_DP.norm(dim=1) * SMALL_SHARE
    sizes = probe.layout.sizes
    worst, where = 0.0, ""
    parts = zip(probe.units, found_DP.split(sizes, 1), wanted_DP.split(sizes, 1), strict=True)
    for name, found_DS, wanted_DS in parts:
        missed_D = (found_DS - wanted_DS).norm(dim=1)
        size_D = torch.maximum(wanted_DS.norm(dim=1), whole_D)
        error = float(torch.where(missed_D == 0, 0.0, missed_D / size_D).max())
        if not error <= worst:
            worst, where = (error if math.isfinite(error) else math.inf), name
    return Check(what, worst, probe.allowed, where, MISREAD)


def of_outliers(probe: Probe, factors: Factors, dense_DP: Tensor, config: Config) -> Check:
    """The k largest of each datum, as found and as sorted from the dense gradients."""
    own = slice_datums({name: factors[name] for name in probe.units}, 0, probe.num)
    k = min(config.capture.outliers.k, dense_DP.shape[1])
    chosen = replace(config.capture.outliers, k=k, scope="datum")
    buffer = ShiftBuffer(probe.layout, probe.num, dense_DP.device)
    found, _ = find_outliers(buffer, own, 1.0, chosen)
    size_DK = found.shift_M.view(probe.num, k).abs().sort(1, descending=True).values
    wanted_DK = dense_DP.abs().topk(k, 1).values
    at_M = dense_DP[found.slot_M, found.column_M]
    largest = wanted_DK.max().clamp(min=torch.finfo(torch.float32).tiny)
    error = max((size_DK - wanted_DK).abs().max(), (found.shift_M - at_M).abs().max()) / largest
    what = f"outliers: top {k:,} of the dense gradients"
    return Check(what, float(error), probe.allowed, "", UNSORTED)


def of_update(plan: Plan, engine: Engine) -> Check:
    """Σ shifts + carry against the change of the weights, as the audit has it."""
    layout, worst = Layout.of(engine.units), 0.0
    token_NT, target_NT = on_device(plan.corpus.train, engine.device)
    for turn in islice(plan.turns(0), STEPS):
        before_P = layout.flatten(engine.units)
        batch = (token_NT[turn.datum_N], target_NT[turn.datum_N])
        step = engine.step(*batch, step=turn.step, epoch=turn.epoch)
        recorded = step.last.factors if step.last else step.factors
        total_P = sum_shifts(recorded, layout, step.scale, step.preconditioner)
        after_P = layout.flatten(engine.units)
        found = shortfalls(step, layout, total_P, before_P, after_P, plan.config.training)
        errors = [each.unexplained for each in found]
        worst = max(worst, *(error if math.isfinite(error) else math.inf for error in errors))
    what = f"Σ shifts + carry = the applied update, {STEPS} steps"
    return Check(what, worst, plan.config.capture.audit_tolerance, "", LOST)
