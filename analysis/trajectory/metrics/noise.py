"""Gradient norm and gradient noise scale on training text.

Source: McCandlish et al. 2018, "An empirical model of large-batch training", appendix A.1.
Shapes: N datum, T position.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analysis.trajectory.metrics.row import WHOLE, Row, mean_row
from analysis.trajectory.metrics.weights import sizes
from analysis.trajectory.observed.model import Observed
from analysis.trajectory.observed.text import Text, Windows

MOST_DATUMS = 32
"""Every datum takes a backward pass of its own."""


def gradient_noise(model: Observed, text: Text) -> Iterator[Row]:
    """Norms of per-sample gradients, and the batch size at which noise equals signal.

    ``gradient_norm``: mean norm of the gradient of one datum's mean loss. ``noise_scale``: tr Σ /
    ‖G‖², in datums, from unbiased estimates of both; NaN where the estimate of ‖G‖² is not
    positive, because noise hides the gradient. ``gradient_size``, ``gradient_mean`` and
    ``gradient_variance``: norm of the datums' mean gradient, mean and variance of its entries, by
    unit and of all together. At most 32 training datums.
    """
    assert text.training
    some = text.training.spread(MOST_DATUMS)
    square_N, mean = squares_and_mean(model.network, some, model.device)
    yield mean_row("gradient_norm", WHOLE, np.sqrt(square_N))
    yield Row("noise_scale", WHOLE, noise_scale(square_N, square_of(mean)), len(square_N))
    yield from sizes(("gradient_size", "gradient_mean", "gradient_variance"), mean)


def noise_scale(square_N: np.ndarray, mean_square: float) -> float:
    """Return tr Σ / ‖G‖² from ‖g_i‖² of each datum and ‖mean of g_i‖²."""
    n, each = len(square_N), float(square_N.mean())
    signal = (n * mean_square - each) / (n - 1)
    noise = (each - mean_square) * n / (n - 1)
    return noise / signal if signal > 0 else float("nan")


def square_of(gradients: dict[str, Tensor]) -> float:
    """Return the squared norm of the gradients of all units."""
    return sum(float(each.double().square().sum()) for each in gradients.values())


def squares_and_mean(
    network: nn.Module, windows: Windows, device: torch.device
) -> tuple[np.ndarray, dict[str, Tensor]]:
    """Return the squared norm of each datum's gradient, and their mean by unit."""
    named = dict(network.named_parameters())
    parameters = list(named.values())
    required = [parameter.requires_grad for parameter in parameters]
    squares: list[float] = []
    total: list[Tensor] = [torch.zeros_like(parameter) for parameter in parameters]
    network.requires_grad_(True)
    try:
        for token_T, target_T in zip(windows.token_NT, windows.target_NT, strict=True):
            logits_TV = network(torch.from_numpy(token_T[None]).to(device))[0]
            wanted_T = torch.from_numpy(target_T[-len(logits_TV) :]).to(device)
            loss = F.cross_entropy(logits_TV, wanted_T)
            own = torch.autograd.grad(loss, parameters, allow_unused=True)
            gradients = [
                torch.zeros_like(t) if g is None else g for g, t in zip(own, total, strict=True)
            ]
            squares.append(sum(float(gradient.double().square().sum()) for gradient in gradients))
            total = [sum_ + gradient for sum_, gradient in zip(total, gradients, strict=True)]
    finally:
        for parameter, before in zip(parameters, required, strict=True):
            parameter.requires_grad_(before)
    mean = {unit: each / len(squares) for unit, each in zip(named, total, strict=True)}
    return np.array(squares), mean
