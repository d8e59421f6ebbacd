"""Ways to learn what each datum of a batch did to the weights: ours, and those without a library.

Every method is a function of a turn that does what a training step needs up to the gradients of the
whole model, which it leaves in the parameters, and returns each datum's gradients of the body's
parameters, as shares of the batch's mean loss. Clipping and SGD follow, the same for all. All take
the same dropout masks, so on the same turn all must return the same numbers.

Shapes: N datum, T position, V vocabulary, K maskable entries of one datum, M target of the batch,
S entries of a unit.
"""

import time
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from benchmarks.harness.workbench import Workbench, mean_loss
from capture.engine.step_plan import PlannedStep
from capture.gradients.dense import write_shifts
from capture.models.dropout import Masks

Gradients = dict[str, Tensor]
"""Unit → [N, …], each datum's gradient; fewer datums where a method checks only some."""
Method = Callable[[Workbench, PlannedStep], Gradients]


def plain(bench: Workbench, turn: PlannedStep) -> Gradients:
    """Forward and backward; nobody's own gradient."""
    token_NT, target_NT = bench.batch(turn)
    mean_loss(bench.model(token_NT, bench.masks(turn)), target_NT).backward()
    return {}


def from_factors(bench: Workbench, turn: PlannedStep) -> Gradients:
    """Ours without selection: factors from one backward pass, multiplied out."""
    _, factors, _ = bench.engine.gradients(*bench.batch(turn), turn.step)
    out = {name: torch.empty(len(turn.datum_N), *unit.shape) for name, unit in bench.units.items()}
    for name, gradient in out.items():
        write_shifts(factors[name], 1.0, gradient.flatten(1))
    return out


def datum_by_datum(bench: Workbench, turn: PlannedStep) -> Gradients:
    """One forward and backward pass per datum, as a batch of one."""
    token_NT, target_NT = bench.batch(turn)
    mask_NK = bench.masks_NK(turn)
    found: list[list[Tensor]] = []
    for slot in range(len(token_NT)):
        one = slice(slot, slot + 1)
        logit_1TV = bench.model(token_NT[one], Masks(mask_NK[one]))
        share = mean_loss(logit_1TV, target_NT[one]) / len(token_NT)
        share.backward()
        found.append([take_gradient(unit) for unit in bench.units.values()])
    return adopted(bench, map(torch.stack, zip(*found, strict=True)))


def take_gradient(parameter: Tensor) -> Tensor:
    """The gradient that the parameter holds, which it then holds no more."""
    gradient, parameter.grad = parameter.grad, None
    assert gradient is not None
    return gradient


def adopted(bench: Workbench, gradients: Iterable[Tensor]) -> Gradients:
    """Gradients by unit; their sums over the batch become the parameters' own."""
    out = dict(zip(bench.units, gradients, strict=True))
    for name, unit in bench.units.items():
        unit.grad = out[name].sum(0)
    return out


def vmap_grad(bench: Workbench, turn: PlannedStep) -> Gradients:
    """``vmap(grad)`` over the body, then a plain pass.

    The second pass is for the embedding's and unembedding's own gradients: to have them from the
    first one, it would have to make 46 MB of them for every datum, which takes longer still.
    """
    token_NT, target_NT = bench.batch(turn)
    others = {name: weight.detach() for name, weight in bench.others.items()}
    body = {name: unit.detach() for name, unit in bench.units.items()}

    def share(body: Gradients, token_T: Tensor, target_T: Tensor, mask_K: Tensor) -> Tensor:
        return datum_share(bench, body | others, token_T, target_T, mask_K)

    per_datum = vmap(grad(share), in_dims=(None, 0, 0, 0))
    out = per_datum(body, token_NT, target_NT, bench.masks_NK(turn))
    plain(bench, turn)
    return out


def vmap_copies(bench: Workbench, turn: PlannedStep) -> Gradients:
    """A weight copy per datum (a view), vmap over the copies, one ordinary backward pass."""
    token_NT, target_NT = bench.batch(turn)
    N = len(token_NT)
    copies = {
        name: unit.detach().expand(N, *unit.shape).requires_grad_()
        for name, unit in bench.units.items()
    }

    def share(copy: Gradients, token_T: Tensor, target_T: Tensor, mask_K: Tensor) -> Tensor:
        return datum_share(bench, copy | bench.others, token_T, target_T, mask_K)

    share_N = vmap(share)(copies, token_NT, target_NT, bench.masks_NK(turn))
    share_N.sum().backward()
    return adopted(bench, map(take_gradient, copies.values()))


def datum_share(
    bench: Workbench, weights: Gradients, token_T: Tensor, target_T: Tensor, mask_K: Tensor
) -> Tensor:
    """One datum's share of the batch's mean loss, as a function of the weights."""
    logit_1TV = functional_call(bench.model, weights, (token_T[None], Masks(mask_K[None])))
    return F.cross_entropy(logit_1TV[0], target_T, reduction="sum") / bench.num_targets


def token_by_token(bench: Workbench, turn: PlannedStep) -> Gradients:
    """The post's way for the first datum alone: what its tokens' backward passes add up to."""
    loss_M = token_losses(bench, turn)
    window = bench.plan.config.corpus.window
    return {
        name: gradient[None] for name, gradient in sum_of_passes(bench, loss_M[:window]).items()
    }


def token_losses(bench: Workbench, turn: PlannedStep) -> Tensor:
    """Every token's share of the batch's mean loss, [M]; by slot, then by position."""
    token_NT, target_NT = bench.batch(turn)
    logit_NTV = bench.model(token_NT, bench.masks(turn))
    loss_M = F.cross_entropy(logit_NTV.flatten(0, 1), target_NT.flatten(), reduction="none")
    return loss_M / bench.num_targets


def sum_of_passes(bench: Workbench, loss_M: Tensor) -> Gradients:
    """One backward pass per token through the whole graph, the body's gradients added up."""
    total = {name: torch.zeros_like(unit) for name, unit in bench.units.items()}
    for loss in loss_M:
        bench.engine.optimizer.zero_grad()
        loss.backward(retain_graph=True)
        for name, unit in bench.units.items():
            total[name] += take_gradient(unit)
    return total


def training_step(bench: Workbench, method: Method) -> Callable[[PlannedStep], None]:
    """A whole step by this method."""

    def step(turn: PlannedStep) -> None:
        bench.engine.optimizer.zero_grad()
        method(bench, turn)
        bench.update()

    return step


def extrapolated(bench: Workbench, tokens: int) -> Callable[[Sequence[PlannedStep]], float]:
    """Seconds a step by the post's way, as if all tokens had been passed back instead of a few."""

    def run(turns: Sequence[PlannedStep]) -> float:
        seconds = 0.0
        for turn in turns:
            start = time.perf_counter()
            loss_M = token_losses(bench, turn)
            chosen_M = loss_M[:: len(loss_M) // tokens][:tokens]
            before = time.perf_counter()
            sum_of_passes(bench, chosen_M)
            passes = time.perf_counter() - before
            bench.engine.optimizer.zero_grad()
            loss_M.sum().backward()
            bench.update()
            rest = time.perf_counter() - start - passes
            seconds += rest + passes * len(loss_M) / tokens
        return seconds / len(turns)

    return run
