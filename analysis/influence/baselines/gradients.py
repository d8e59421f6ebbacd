"""Scores from gradients of the last checkpoint: dot product and cosine with the query's gradient.

The cheapest gradient method: TracIn (Pruthi et al. 2020) with one checkpoint, or influence
functions with the identity for the Hessian. A step on a datum moves the weights against the
gradient of its loss, so the score is −⟨∇query, ∇loss⟩. Nothing is dropped out.

Shapes: Q query, D datum, N datum of a chunk, T position, P parameter.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from analysis.influence.queries.query import Query
from analysis.run.run import Run
from capture.models.transformer import AnyModel

DATUMS_AT_ONCE = 32
GRADIENT_BYTES = 2**28
"""Bound on the per-datum gradients in memory at once."""
Report = Callable[[int, int], None]
"""Called with the number of datums done and the number of all."""
Weights = dict[str, Tensor]


def final_gradient_dot(
    run: Run, queries: Sequence[Query], report: Report = lambda done, all: None
) -> np.ndarray:
    """Return −⟨∇query, ∇loss of the datum⟩ at the last checkpoint, [Q, D].

    All datums of a chunk are scored by one derivative of ⟨∇Σ w_n loss_n, ∇query⟩ with respect to
    the weights w_n of the datums, so no per-datum gradient is formed.
    """
    model, weights = model_and_weights(run)
    directions = [query.gradient(weights)[1] for query in queries]
    return dot_with_losses(run, model, weights, directions, report)


def dot_with_losses(
    run: Run,
    model: AnyModel,
    weights: Weights,
    directions: Sequence[Weights],
    report: Report = lambda done, all: None,
) -> np.ndarray:
    """Return −⟨direction, ∇loss of the datum⟩ for each direction and training datum, [Q, D].

    ``weights``: the parameters in which to differentiate; each direction has the same names.
    """
    found = np.empty((len(directions), run.num_datums))
    for start, token_NT, target_NT in chunks(run, DATUMS_AT_ONCE):
        leaves = {name: own.detach().requires_grad_() for name, own in weights.items()}
        weight_N = torch.ones(len(token_NT), dtype=torch.float32, requires_grad=True)
        loss_N = datum_losses(model, leaves, token_NT, target_NT)
        own = torch.autograd.grad(
            (weight_N * loss_N).sum(), list(leaves.values()), create_graph=True
        )
        for row, direction in enumerate(directions):
            along = torch.stack(
                [(g * direction[name]).sum() for name, g in zip(leaves, own, strict=True)]
            ).sum()
            (score_N,) = torch.autograd.grad(along, weight_N, retain_graph=True)
            found[row, start : start + len(token_NT)] = -score_N.double().numpy()
        report(start + len(token_NT), run.num_datums)
    return found


def final_gradient_cosine(
    run: Run, queries: Sequence[Query], report: Report = lambda done, all: None
) -> np.ndarray:
    """Return minus the cosine of ∇query and the gradient of the datum's loss, [Q, D]."""
    model, weights = model_and_weights(run)
    gradient_QP = torch.stack([flat(query.gradient(weights)[1]) for query in queries])
    gradient_QP /= gradient_QP.norm(dim=1, keepdim=True).clamp(min=1e-30)
    at_once = max(1, min(DATUMS_AT_ONCE, GRADIENT_BYTES // (4 * gradient_QP.shape[1])))
    found = np.empty((len(queries), run.num_datums))

    def loss_of(weights: Weights, token_T: Tensor, target_T: Tensor) -> Tensor:
        return datum_losses(model, weights, token_T[None], target_T[None])[0]

    each = vmap(grad(loss_of), in_dims=(None, 0, 0), randomness="same")
    for start, token_NT, target_NT in chunks(run, at_once):
        own = each(weights, token_NT, target_NT)
        own_NP = torch.cat([own[name].flatten(1) for name in weights], dim=1)
        norm_N = own_NP.norm(dim=1).clamp(min=1e-30)
        score_QN = -(gradient_QP @ own_NP.T) / norm_N
        found[:, start : start + len(token_NT)] = score_QN.double().numpy()
        report(start + len(token_NT), run.num_datums)
    return found


def model_and_weights(run: Run) -> tuple[AnyModel, Weights]:
    """Return the last model, and its trained parameters by name; tied weights once."""
    model = run.network()
    return model, {name: own.detach() for name, own in model.named_parameters()}


def datum_losses(model: AnyModel, weights: Weights, token_NT: Tensor, target_NT: Tensor) -> Tensor:
    """Return the mean cross-entropy of every datum, nats per token, without dropout, [N]."""
    return position_losses(model, weights, token_NT, target_NT).mean(1)


def position_losses(
    model: AnyModel, weights: Weights, token_NT: Tensor, target_NT: Tensor
) -> Tensor:
    """Return the cross-entropy at every position, nats, without dropout, [N, T]."""
    logit_NTV = functional_call(model, weights, (token_NT,)).float()
    target_NT = target_NT[:, -logit_NTV.shape[1] :]  # those of the scored positions
    lost_M = F.cross_entropy(logit_NTV.flatten(0, 1), target_NT.flatten(), reduction="none")
    return lost_M.view(target_NT.shape)


def chunks(run: Run, at_once: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield the first datum of a chunk with the chunk's inputs and targets, [N, T]."""
    token_DT, target_DT = (torch.from_numpy(x).long() for x in (run.token_NT, run.target_NT))
    for start in range(0, len(token_DT), at_once):
        own = slice(start, start + at_once)
        yield start, token_DT[own], target_DT[own]


def flat(tensors: Weights) -> Tensor:
    return torch.cat([own.flatten() for own in tensors.values()])
