"""The sample of units and datums that the self-check uses, and its gradients by several methods.

Allowed difference: with unit roundoff u, a chain of n roundings changes a result by about u √n
(Higham & Mary 2019, A new approach to probabilistic rounding error analysis, theorem 2.4). Every
parameter adds two links to the chain, one forward and one backward. In float32 a link is a pairwise
sum with log2(terms) roundings. In bfloat16, whose products are summed in float32, a link is the
rounding of the product. The allowed difference is ``SAFETY`` times this.

Shapes: N datum of a batch, D datum of the sample, T token, V vocabulary, P parameter of the sample.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from capture.engine.engine import Engine
from capture.engine.observer import to_device
from capture.engine.step_plan import StepPlan
from capture.gradients.factored_algebra import dense
from capture.gradients.factors import Factors
from capture.gradients.layout import Layout
from capture.gradients.tape import Tape
from capture.models.dropout import Masks
from capture.optim.update import BFLOAT16_ROUNDING, ROUNDING

DATUMS = 3
"""Most datums of the sample."""
MAX_ENTRIES = 2**26
"""Largest size of a dense tensor, 256 MiB."""
SAFETY = 4


@dataclass(frozen=True)
class Probe:
    """The sample that is checked: some units, and the first datums of the first batch."""

    engine: Engine
    units: dict[str, nn.Parameter]
    token_NT: Tensor
    target_NT: Tensor
    masks: Masks
    num: int
    """D, the number of datums in the sample."""
    allowed: float
    """Allowed relative difference."""

    @property
    def layout(self) -> Layout:
        return Layout.of(self.units)

    @property
    def scored(self) -> slice:
        """The positions of the window whose loss is recorded."""
        return slice(-1, None) if self.engine.last_only else slice(None)

    def loss(self, logit_NTV: Tensor, target_NT: Tensor) -> Tensor:
        """Return the sum of the datums' shares of the batch's mean loss."""
        logit_MV = logit_NTV[:, self.scored].float().flatten(0, 1)
        lost = F.cross_entropy(logit_MV, target_NT[:, self.scored].flatten(), reduction="sum")
        return lost / self.target_NT.numel()

    def dense(self, factors: Factors, rows: Sequence[int]) -> Tensor:
        """Return the gradients of some rows of a batch in all units of the sample, [D, P]."""
        kept = list(rows)
        parts = [
            dense([use.map_tensors(lambda x: x[kept]) for use in factors[name]], shape).flatten(1)
            for name, shape in self.layout.shapes.items()
        ]
        return torch.cat(parts, 1)

    def masks_of(self, slots: Sequence[int]) -> Masks:
        """Return the dropout masks of some slots of the first batch."""
        pool_NK = self.masks.pool_NK
        return Masks.none() if pool_NK is None else Masks(pool_NK[list(slots)])


def make_probe(plan: StepPlan, engine: Engine) -> tuple[Probe, tuple[Tensor, Tensor]]:
    """Return the sample, and another batch of as many datums (at least two)."""
    token_NT, target_NT = to_device(plan.corpus.train, engine.device)
    batch = plan.config.training.batch
    order = torch.from_numpy(next(plan.planned_steps(0)).datum_N)
    first = set(order.tolist())
    rest = torch.tensor([d for d in range(len(token_NT)) if d not in first], dtype=torch.int64)
    other = torch.cat([rest, order.flip(0)])[: max(2, batch)]
    num = min(DATUMS, batch)
    window = plan.config.corpus.window
    probe = Probe(
        engine,
        sample_units(engine.units, MAX_ENTRIES // num),
        token_NT[order],
        target_NT[order],
        engine.masks(range(batch), 0, window),
        num,
        tolerance(engine, window),
    )
    return probe, (token_NT[other], target_NT[other])


def sample_units(units: Mapping[str, nn.Parameter], most: int) -> dict[str, nn.Parameter]:
    """Choose units with at most ``most`` entries in all, spread over the model.

    The first unit is always chosen.
    """
    names = list(units)
    # Steps of the golden ratio visit every unit once (the stride has no common divisor with their
    # number) and are spread evenly from the first step on.
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
    """Return how much rounding alone may change a gradient, relatively (see the module
    docstring)."""
    parameters = list(engine.model.parameters())
    links = 2 * len(parameters)
    if engine.config.precision == "bfloat16":
        return SAFETY * BFLOAT16_ROUNDING * math.sqrt(links)
    longest = 2 * window * max(max(parameter.shape) for parameter in parameters)
    return SAFETY * ROUNDING * math.sqrt(links * math.log2(longest))


def captured_factors(probe: Probe) -> Factors:
    """Return the factors that a capture would record of the first batch."""
    probe.engine.optimizer.zero_grad()
    _, factors, last = probe.engine.gradients(probe.token_NT, probe.target_NT, 0)
    return last.factors if last else factors


def one_at_a_time(probe: Probe) -> Tensor:
    """Return the gradients from a separate backward pass for every datum, [D, P]."""
    engine, rows = probe.engine, []
    for slot in range(probe.num):
        with engine.autocast():
            logit_1TV = engine.model(probe.token_NT[slot : slot + 1], probe.masks_of([slot]))
        loss = probe.loss(logit_1TV, probe.target_NT[slot : slot + 1])
        grads = torch.autograd.grad(loss, list(probe.units.values()))
        rows.append(torch.cat([grad.flatten().float() for grad in grads]))
    return torch.stack(rows)


def in_another_batch(probe: Probe, token_NT: Tensor, target_NT: Tensor) -> Tensor:
    """Return the gradients of the sample's datums within another batch, [D, P].

    The datums stand at the end of that batch in reverse order and keep their own dropout masks.
    """
    token_NT, target_NT = token_NT.clone(), target_NT.clone()
    slots = list(range(len(token_NT)))
    places = [len(slots) - 1 - place for place in range(probe.num)]
    for place, slot in zip(places, range(probe.num), strict=True):
        token_NT[place], target_NT[place] = probe.token_NT[slot], probe.target_NT[slot]
    last = len(probe.token_NT) - 1
    order = [min(len(slots) - 1 - place, last) for place in slots]
    engine, units = probe.engine, probe.units
    split = {name: unit for name, unit in units.items() if name in engine.tape_units}
    masks = probe.masks_of(order)
    with Tape(split, len(token_NT)) as tape, engine.autocast():
        logit_NTV = engine.model(token_NT, masks)
    probe.loss(logit_NTV, target_NT).backward()
    rest = [name for name in units if name not in split]
    batch = (token_NT, target_NT, masks, probe.target_NT.numel())
    return probe.dense(
        tape.factors() | engine.vmap_factors(rest, *batch, scored=probe.scored), places
    )
