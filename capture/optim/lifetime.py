"""How much of a gradient the weights still hold after later updates.

Given learning rates, clipping and preconditioners, an update is linear in the gradients, entry by
entry. With G the sum of a batch's per-sample gradients, θ the weights and m the moment (momentum)
before the update, the optimizers of ``capture.optim.rules`` are all of this form:

    u  = clip · G + l2 · θ
    θ' = kept · θ + rate · P ⊙ (u + w m) + c m
    m' = β m + α ⊙ u

For SGD, Adam and AdamW (``capture.optim.optimizer``) kept = 1 − lr · decay for AdamW and 1
otherwise, rate = −lr · gradient weight, w is the weight of the old moment, c = 0, and (α, β) is
(1, μ) for SGD, (1 − β₁, β₁) for Adam. Let p = ∂θ_T/∂θ and q = ∂θ_T/∂m be the derivatives of the
weights after the last step T. Backward from p = 1, q = 0:

    k = rate · P p' + α q'        (∂θ_T/∂u)
    p = kept · p' + l2 · k
    q = w · rate · P p' + c p' + β q'

A datum's *lifetime shift* is clip · k ⊙ its gradient: what its gradient in that step still
contributes to the last weights. It equals the last weights minus those without this gradient, if
all other gradients, clip factors and preconditioners stay as they were. What later steps decay is
left out of it. So the lifetime shifts of all datums and steps, and p_0 ⊙ θ_0, sum to θ_T.

The functions take scalars (SGD) or float64 tensors of a unit's shape (Adam) alike.
"""

from dataclasses import dataclass

from torch import Tensor

from capture.optim.optimizer import first_moment_weight, gradient_weight
from capture.optim.optimizer_config import OptimizerConfig

Coefficient = Tensor | float
"""One number for a whole unit, or a float64 tensor of its shape."""


@dataclass(frozen=True, eq=False)
class AppliedUpdate:
    """The coefficients of one update of a unit."""

    rate: float
    """−lr · gradient weight: multiplier of the clipped gradient, before preconditioning."""
    clip: float
    """Factor by which clipping multiplied the gradient; negative if the optimizer maximizes."""
    kept: float
    """Factor by which decoupled weight decay multiplied the weights."""
    preconditioner: Coefficient
    """P: 1.0 for SGD."""
    l2: float = 0.0
    """Factor of the weights that weight decay adds to the gradient."""
    remembered: float = 0.0
    """w: weight of the moment beside the gradient, before P."""
    added: float = 0.0
    """c: factor of the moment that is added to the weights, without P."""
    old: float = 0.0
    """β: factor of the moment in the next moment."""
    new: Coefficient = 0.0
    """α: factor of the gradient in the next moment."""

    @classmethod
    def of(
        cls,
        config: OptimizerConfig,
        *,
        learning_rate: float,
        clip: float,
        step: int,
        preconditioner: Tensor | None = None,
    ) -> "AppliedUpdate":
        """Describe update number ``step`` (from 0); ``preconditioner`` as in ``UpdateParts``."""
        decoupled = config.kind == "adamw"
        old, new = moment_weights(config)
        return cls(
            -learning_rate * gradient_weight(config, step),
            clip,
            1 - learning_rate * (config.weight_decay if decoupled else 0.0),
            1.0 if preconditioner is None else preconditioner.detach().cpu().double(),
            l2=0.0 if decoupled else config.weight_decay,
            remembered=first_moment_weight(config),
            old=old,
            new=new,
        )

    @property
    def has_moment(self) -> bool:
        """Whether the moment before the update acts in it."""
        return bool(self.remembered or self.added)


@dataclass(frozen=True, eq=False)
class Persistence:
    """How much of a unit's state is left in its last weights: derivatives, entry by entry."""

    weight: Coefficient = 1.0
    """p: derivative of the last weights with respect to the weights now."""
    moment: Coefficient = 0.0
    """q: derivative of the last weights with respect to the moment now."""

    def before(self, update: AppliedUpdate) -> "Persistence":
        """Return the persistence before an update, if ``self`` is the one after it."""
        at_once = update.rate * (update.preconditioner * self.weight)
        weight = update.kept * self.weight
        if update.l2:
            weight = weight + update.l2 * (at_once + update.new * self.moment)
        moment = update.remembered * at_once + update.old * self.moment
        if update.added:
            moment = moment + update.added * self.weight
        return Persistence(weight, moment)

    def of_gradient(self, update: AppliedUpdate) -> Coefficient:
        """Return the multiplier from a gradient of an update to its lifetime shift.

        ``self`` is the persistence after the update. For plain SGD the multiplier has the bits of
        the step's scale (−lr · clip).
        """
        at_once = update.rate * update.clip * (update.preconditioner * self.weight)
        return at_once + update.clip * update.new * self.moment


def moment_weights(config: OptimizerConfig) -> tuple[float, float]:
    """Return the weights of the old moment and of the new gradient in the first moment."""
    if config.kind == "sgd":
        return config.momentum, 1.0
    return config.beta1, 1 - config.beta1
