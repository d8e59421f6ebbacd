"""How unexpected each training datum is to models that were not trained on it.

A model that has seen a datum has learned it by heart to some degree, which hides that it does not
fit. So the run is trained again without each of ``FOLDS`` random parts of its datums, and every
datum is judged by the model that lacks it (cross-validation, as "confident learning" of Northcutt
et al. 2021 asks for). The retrainings are kept in the run.

- held-out: the datum's loss, less the mean loss of the same target tokens in all datums;
- order: the datum's loss, less the mean of two expectations of it: that of the same target tokens
  in all datums, and that of the datum's own tokens in random orders. An ordinary text lies far
  below its shuffles, and a scrambled one among them, however rare its tokens are.

Shapes: D datum, N datum of a fold, T position, M token of a datum and its last target, K shuffle.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from analysis.influence.baselines.gradients import position_losses
from analysis.influence.judge.designs import reweighted
from analysis.influence.judge.retrainings import read_kept, require_kept
from analysis.influence.suspects.unexpected import Weights, less_mean_of_target, scored_targets
from analysis.jobs.sweep import Sweep
from analysis.run.run import Run
from capture.errors import ConfigError
from capture.models.transformer import AnyModel

FOLDS = 5
SHUFFLES = 16
DATUMS_AT_ONCE = 64
Report = Callable[[int, int], None]


def held_out_residual(run: Run, report: Report, sweep: Sweep) -> np.ndarray:
    """Return the held-out loss of each datum less that of the same targets in all datums, [D].

    Raises what training again raises.
    """
    token_DM, target_DT = whole_datums(run), scored_targets(run)
    loss_DT = np.empty(target_DT.shape)
    for fold in held_out_models(run, report, sweep):
        loss_DT[fold.datum_N] = fold.losses(token_DM[fold.datum_N])
    return less_mean_of_target(loss_DT, target_DT, run.num_tokens)


def order_residual(run: Run, report: Report, sweep: Sweep) -> np.ndarray:
    """Return the held-out loss of each datum less the mean of its two expectations, [D].

    Raises ``ConfigError`` for a task, whose tokens have no order to lose, and what training again
    raises.
    """
    if run.config.corpus.scored is not None:
        problem = f"got 'order', but a datum of {run.config.corpus.kind} is no text"
        raise ConfigError("suspects.evidence (--method)", problem, "Choose held-out")
    token_DM = whole_datums(run)
    rng, loss_DT = np.random.default_rng(0), np.empty(run.target_NT.shape)
    shuffled_D = np.empty(run.num_datums)
    for fold in held_out_models(run, report, sweep):
        token_NM = token_DM[fold.datum_N]
        loss_DT[fold.datum_N] = fold.losses(token_NM)
        others = [fold.losses(rng.permuted(token_NM, axis=1)) for _ in range(SHUFFLES)]
        shuffled_D[fold.datum_N] = np.mean(others, axis=(0, 2))
    by_target_D = less_mean_of_target(loss_DT, run.target_NT, run.num_tokens)
    return (by_target_D + loss_DT.mean(1) - shuffled_D) / 2


@dataclass(frozen=True, eq=False)
class Fold:
    """Some datums, and a model that was not trained on them."""

    datum_N: np.ndarray
    model: AnyModel
    weights: Weights

    @torch.no_grad()
    def losses(self, token_NM: np.ndarray) -> np.ndarray:
        """Return the loss at every scored position, nats, [N, T]."""
        found = [
            position_losses(self.model, self.weights, own_NM[:, :-1], own_NM[:, 1:])
            for own_NM in torch.from_numpy(token_NM).long().split(DATUMS_AT_ONCE)
        ]
        return torch.cat(found).double().numpy()


def held_out_models(run: Run, report: Report, sweep: Sweep) -> Iterator[Fold]:
    """Yield the datums of each fold with the model that was trained without them."""
    folds = folds_of(run.num_datums)
    model = run.network()
    variations = [reweighted(run.num_datums, datum_N, "removal") for datum_N in folds]
    require_kept(run, variations, report, sweep)
    for datum_N, variation in zip(folds, variations, strict=True):
        kept = read_kept(run, variation)
        weights = {name: kept[name].detach() for name, _ in model.named_parameters()}
        yield Fold(datum_N, model, weights)


def whole_datums(run: Run) -> np.ndarray:
    """Return the tokens of each datum and its last target, [D, M]."""
    return np.column_stack([run.token_NT, run.target_NT[:, -1]])


def folds_of(num_datums: int) -> list[np.ndarray]:
    """Return the datums in random parts of equal size, to one datum; fewer if there are fewer."""
    order_D = np.random.default_rng(0).permutation(num_datums)
    return [np.sort(order_D[start::FOLDS]) for start in range(min(FOLDS, num_datums))]


HELD_OUT: dict[str, Callable[[Run, Report, Sweep], np.ndarray]] = {
    "held-out": held_out_residual,
    "order": order_residual,
}
"""Name → evidence that trains the run again."""
