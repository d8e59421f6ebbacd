"""How unexpected each training datum was to the model: datums that do not fit the others.

All evidence averages over the run's checkpoints but the first, because a datum that was learned by
heart at last was still unexpected before. No step is replayed.

- loss: the mean loss of the datum, which finds flipped labels (Pleiss et al. 2020; Arpit et al.
  2017: mislabelled data are learned late);
- excess: the loss less that under the frequencies of single tokens, so that rare words alone make
  no datum suspect;
- residual: the loss less the mean loss of the same target tokens in the whole training text, under
  the same weights. So neither rare words nor words that are hard anywhere make a datum suspect;
  what is left is that they do not fit here;
- self-influence: the squared norm of the gradient of the datum's loss, the influence of a step on
  the datum on its own loss (Pruthi et al. 2020, "TracIn", section 4.1).

Shapes: D datum, N datum of a chunk, T position, V vocabulary.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, vmap

from analysis.influence.baselines.gradients import (
    GRADIENT_BYTES,
    chunks,
    datum_losses,
    position_losses,
)
from analysis.run.run import Run

DATUMS_AT_ONCE = 64
MOST_CHECKPOINTS = 8
Report = Callable[[int, int], None]
Weights = dict[str, Tensor]


def mean_loss(run: Run, report: Report = lambda done, wanted: None) -> np.ndarray:
    """Return the mean loss of each datum over the checkpoints, nats per token, [D]."""
    found = np.zeros(run.num_datums)
    steps = checkpoint_steps(run)
    for done, (model, weights) in enumerate(models(run, steps)):
        with torch.no_grad():
            for start, token_NT, target_NT in chunks(run, DATUMS_AT_ONCE):
                loss_N = datum_losses(model, weights, token_NT, target_NT)
                found[start : start + len(token_NT)] += loss_N.double().numpy() / len(steps)
        report(done + 1, len(steps))
    return found


def excess_loss(run: Run, report: Report = lambda done, wanted: None) -> np.ndarray:
    """Return ``mean_loss`` less the loss under the frequencies of single tokens, [D]."""
    return mean_loss(run, report) - token_loss(run)


def token_loss(run: Run) -> np.ndarray:
    """Return the mean of −log(frequency of the target in the training text) of each datum, [D]."""
    target_DP = scored_targets(run)
    count_V = np.bincount(target_DP.ravel(), minlength=run.num_tokens)
    return -np.log(count_V[target_DP] / target_DP.size).mean(1)


def scored_targets(run: Run) -> np.ndarray:
    """Return the targets of the positions at which the loss counts, [D, P]."""
    return run.target_NT[:, -(run.config.corpus.scored or run.target_NT.shape[1]) :]


def residual_loss(run: Run, report: Report = lambda done, wanted: None) -> np.ndarray:
    """Return the mean loss of each datum less that of the same targets in all datums, [D]."""
    found, steps = np.zeros(run.num_datums), checkpoint_steps(run)
    target_DT = scored_targets(run)
    for done, (model, weights) in enumerate(models(run, steps)):
        with torch.no_grad():
            losses = [
                position_losses(model, weights, token_NT, target_NT).double().numpy()
                for _, token_NT, target_NT in chunks(run, DATUMS_AT_ONCE)
            ]
        found += less_mean_of_target(np.concatenate(losses), target_DT, run.num_tokens) / len(steps)
        report(done + 1, len(steps))
    return found


def less_mean_of_target(loss_DT: np.ndarray, target_DT: np.ndarray, num_tokens: int) -> np.ndarray:
    """Return the mean over positions of the loss less the mean loss of the same target, [D]."""
    count_V = np.bincount(target_DT.ravel(), minlength=num_tokens)
    total_V = np.bincount(target_DT.ravel(), loss_DT.ravel(), minlength=num_tokens)
    mean_V = total_V / np.maximum(count_V, 1)
    return (loss_DT - mean_V[target_DT]).mean(1)


def self_influence(run: Run, report: Report = lambda done, wanted: None) -> np.ndarray:
    """Return the mean squared norm of the gradient of each datum's loss, [D]."""
    found = np.zeros(run.num_datums)
    steps = checkpoint_steps(run)
    for done, (model, weights) in enumerate(models(run, steps)):

        def loss_of(own: Weights, token_T: Tensor, target_T: Tensor, model=model) -> Tensor:
            return datum_losses(model, own, token_T[None], target_T[None])[0]

        each = vmap(grad(loss_of), in_dims=(None, 0, 0), randomness="same")
        size = sum(own.numel() for own in weights.values())
        at_once = max(1, min(DATUMS_AT_ONCE, GRADIENT_BYTES // (4 * size)))
        for start, token_NT, target_NT in chunks(run, at_once):
            own = each(weights, token_NT, target_NT).values()
            norm_N = sum(part.flatten(1).square().sum(1) for part in own)
            assert isinstance(norm_N, Tensor)
            found[start : start + len(token_NT)] += norm_N.double().numpy() / len(steps)
        report(done + 1, len(steps))
    return found


def checkpoint_steps(run: Run) -> list[int]:
    """Return up to ``MOST_CHECKPOINTS`` checkpoints after the start, evenly spread, with the
    last."""
    ends = [segment.end_step for segment in run.segments]
    places = np.linspace(0, len(ends) - 1, min(MOST_CHECKPOINTS, len(ends))).round().astype(int)
    return [ends[place] for place in places]


def models(run: Run, steps: list[int]) -> Iterator[tuple]:
    """Yield the model and its weights after each number of steps."""
    for step in steps:
        model = run.network(step)
        yield model, {name: own.detach() for name, own in model.named_parameters()}


UNEXPECTED: dict[str, Callable[[Run, Report], np.ndarray]] = {
    "residual": residual_loss,
    "excess": excess_loss,
    "loss": mean_loss,
    "self-influence": self_influence,
}
"""Name → evidence."""
