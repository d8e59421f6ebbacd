"""Slow, obvious reference for lifetime shifts: train twice, the second time without a gradient.

Shapes: t step, N datum, S entry of a made-up parameter.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from capture.optim.optimizer_config import OptimizerConfig


def last_weights(
    config: OptimizerConfig,
    start_S: Tensor,
    given_tS: Sequence[Tensor],
    rates: Sequence[float],
    applied_tS: Sequence[Tensor],
    applied_start_S: Tensor | None = None,
) -> Tensor:
    """Return the weights after training by the papers' algorithms.

    Gradients ``applied_tS`` (from ``applied_start_S``) move the weights, and ``given_tS`` (from
    ``start_S``) fill Adam's second moment. So preconditioners stay those of the real run when
    gradients are left out of ``applied_tS``.
    """
    zero_S = torch.zeros_like(start_S)
    real_S, real_m_S, v_S = start_S, zero_S, zero_S
    theta_S, m_S = start_S if applied_start_S is None else applied_start_S, zero_S
    for t, (given_S, applied_S, rate) in enumerate(zip(given_tS, applied_tS, rates, strict=True)):
        if config.kind != "sgd":
            v_S = config.beta2 * v_S + (1 - config.beta2) * l2(config, given_S, real_S) ** 2
        root_S = (v_S / (1 - config.beta2 ** (t + 1))).sqrt() + config.epsilon
        real_S, real_m_S = update(config, real_S, real_m_S, given_S, root_S, rate, t)
        theta_S, m_S = update(config, theta_S, m_S, applied_S, root_S, rate, t)
    return theta_S


def update(
    config: OptimizerConfig,
    theta_S: Tensor,
    m_S: Tensor,
    grad_S: Tensor,
    root_S: Tensor,
    rate: float,
    t: int,
) -> tuple[Tensor, Tensor]:
    """Return weights and first moment after update number t (from 0)."""
    u_S = l2(config, grad_S, theta_S)
    if config.kind == "sgd":
        m_S = config.momentum * m_S + u_S
        return theta_S - rate * (u_S + config.momentum * m_S if config.nesterov else m_S), m_S
    m_S = config.beta1 * m_S + (1 - config.beta1) * u_S
    step_S = m_S / (1 - config.beta1 ** (t + 1)) / root_S
    decay_S = config.weight_decay * theta_S if config.kind == "adamw" else 0.0
    return theta_S - rate * (step_S + decay_S), m_S


def l2(config: OptimizerConfig, grad_S: Tensor, theta_S: Tensor) -> Tensor:
    return grad_S if config.kind == "adamw" else grad_S + config.weight_decay * theta_S
