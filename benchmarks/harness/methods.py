"""Methods that compute per-sample gradients: Ontogeny's, and those that need torch alone.

Every method is a function of the workbench and a planned step. It leaves the batch gradient of the
whole model in the parameters and returns each datum's gradients of the body's parameters, for the
datum's share of the batch's mean loss. Clipping and SGD follow, the same for all methods. All use
the same dropout masks, so all must return the same numbers for the same planned step.

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
"""Unit → gradients, [N, …]; empty, or with fewer datums, if a method computes only some."""
Method = Callable[[Workbench, PlannedStep], Gradients]


def plain(bench: Workbench, planned: PlannedStep) -> Gradients:
    """A forward and a backward pass without per-datum gradients."""
    token_NT, target_NT = bench.batch(planned)
    mean_loss(bench.model(token_NT, bench.masks(planned)), target_NT).backward()
    return {}


def from_factors(bench: Workbench, planned: PlannedStep) -> Gradients:
    """Ontogeny's factors from one backward pass, multiplied out; nothing is selected."""
    _, factors, _ = bench.engine.gradients(*bench.batch(planned), planned.step)
    out = {
        name: torch.empty(len(planned.datum_N), *unit.shape) for name, unit in bench.units.items()
    }
    for name, gradient in out.items():
        write_shifts(factors[name], 1.0, gradient.flatten(1))
    return out


def datum_by_datum(bench: Workbench, planned: PlannedStep) -> Gradients:
    """One forward and backward pass per datum, as a batch of one."""
    token_NT, target_NT = bench.batch(planned)
    mask_NK = bench.masks_NK(planned)
    found: list[list[Tensor]] = []
    for slot in range(len(token_NT)):
        one = slice(slot, slot + 1)
        logit_1TV = bench.model(token_NT[one], Masks(mask_NK[one]))
        share = mean_loss(logit_1TV, target_NT[one]) / len(token_NT)
        share.backward()
        found.append([take_gradient(unit) for unit in bench.units.values()])
    return set_batch_gradients(bench, map(torch.stack, zip(*found, strict=True)))


def take_gradient(parameter: Tensor) -> Tensor:
    """Return the parameter's gradient and set its ``grad`` to None."""
    gradient, parameter.grad = parameter.grad, None
    assert gradient is not None
    return gradient


def set_batch_gradients(bench: Workbench, gradients: Iterable[Tensor]) -> Gradients:
    """Set the units' ``grad`` to the sums over the batch; return the gradients by unit."""
    out = dict(zip(bench.units, gradients, strict=True))
    for name, unit in bench.units.items():
        unit.grad = out[name].sum(0)
    return out


def vmap_grad(bench: Workbench, planned: PlannedStep) -> Gradients:
    """``vmap(grad)`` over the body, then a plain pass.

    The second pass computes the gradients of embedding and unembedding. The first one would have
    to compute 46 MB of them for every datum, which takes longer than a second pass.
    """
    token_NT, target_NT = bench.batch(planned)
    others = {name: weight.detach() for name, weight in bench.others.items()}
    body = {name: unit.detach() for name, unit in bench.units.items()}

    def share(body: Gradients, token_T: Tensor, target_T: Tensor, mask_K: Tensor) -> Tensor:
        return datum_share(bench, body | others, token_T, target_T, mask_K)

    per_datum = vmap(grad(share), in_dims=(None, 0, 0, 0))
    out = per_datum(body, token_NT, target_NT, bench.masks_NK(planned))
    plain(bench, planned)
    return out


def vmap_copies(bench: Workbench, planned: PlannedStep) -> Gradients:
    """A weight copy per datum (a view), vmap over the copies, one ordinary backward pass."""
    token_NT, target_NT = bench.batch(planned)
    N = len(token_NT)
    copies = {
        name: unit.detach().expand(N, *unit.shape).requires_grad_()
        for name, unit in bench.units.items()
    }

    def share(copy: Gradients, token_T: Tensor, target_T: Tensor, mask_K: Tensor) -> Tensor:
        return datum_share(bench, copy | bench.others, token_T, target_T, mask_K)

    share_N = vmap(share)(copies, token_NT, target_NT, bench.masks_NK(planned))
    share_N.sum().backward()
    return set_batch_gradients(bench, map(take_gradient, copies.values()))


def datum_share(
    bench: Workbench, weights: Gradients, token_T: Tensor, target_T: Tensor, mask_K: Tensor
) -> Tensor:
    """One datum's share of the batch's mean loss, as a function of the weights."""
    logit_1TV = functional_call(bench.model, weights, (token_T[None], Masks(mask_K[None])))
    return F.cross_entropy(logit_1TV[0], target_T, reduction="sum") / bench.num_targets


def token_by_token(bench: Workbench, planned: PlannedStep) -> Gradients:
    """The study's method for the first datum alone: one backward pass per token, added up."""
    loss_M = token_losses(bench, planned)
    window = bench.plan.config.corpus.window
    return {
        name: gradient[None] for name, gradient in sum_of_passes(bench, loss_M[:window]).items()
    }


def token_losses(bench: Workbench, planned: PlannedStep) -> Tensor:
    """Return each token's share of the batch's mean loss, [M], by slot, then by position."""
    token_NT, target_NT = bench.batch(planned)
    logit_NTV = bench.model(token_NT, bench.masks(planned))
    loss_M = F.cross_entropy(logit_NTV.flatten(0, 1), target_NT.flatten(), reduction="none")
    return loss_M / bench.num_targets


def sum_of_passes(bench: Workbench, loss_M: Tensor) -> Gradients:
    """Return the body's gradients, added up over one backward pass per token."""
    total = {name: torch.zeros_like(unit) for name, unit in bench.units.items()}
    for loss in loss_M:
        bench.engine.optimizer.zero_grad()
        loss.backward(retain_graph=True)
        for name, unit in bench.units.items():
            total[name] += take_gradient(unit)
    return total


def training_step(bench: Workbench, method: Method) -> Callable[[PlannedStep], None]:
    """Return a function that takes a whole training step with this method."""

    def step(planned: PlannedStep) -> None:
        bench.engine.optimizer.zero_grad()
        method(bench, planned)
        bench.update()

    return step


def extrapolated(bench: Workbench, tokens: int) -> Callable[[Sequence[PlannedStep]], float]:
    """Return a function that times the study's method, extrapolated to all tokens of the batch.

    Only ``tokens`` backward passes run per step; the rest of the step runs, and counts, once.
    """

    def run(planned_steps: Sequence[PlannedStep]) -> float:
        seconds = 0.0
        for planned in planned_steps:
            start = time.perf_counter()
            loss_M = token_losses(bench, planned)
            chosen_M = loss_M[:: len(loss_M) // tokens][:tokens]
            before = time.perf_counter()
            sum_of_passes(bench, chosen_M)
            passes = time.perf_counter() - before
            bench.engine.optimizer.zero_grad()
            loss_M.sum().backward()
            bench.update()
            rest = time.perf_counter() - start - passes
            seconds += rest + passes * len(loss_M) / tokens
        return seconds / len(planned_steps)

    return run
