"""Slow, obvious references for the computations of capture."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from capture.models.dropout import Masks, draw_masks
from capture.models.transformer import LanguageModel, ModelConfig, dropout_entries, fresh_model

TINY = ModelConfig(layers=2, width=12, hidden=10, heads=3, dropout=0.2)
VOCABULARY, WINDOW = 23, 7


def tiny_model(config: ModelConfig = TINY, *, seed: int = 0) -> LanguageModel:
    return fresh_model(config, vocabulary=VOCABULARY, window=WINDOW, seed=seed)


def random_batch(batch: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return random tokens and targets, both [N, T]."""
    generator = torch.Generator().manual_seed(seed)
    stream_NT = torch.randint(VOCABULARY, (batch, WINDOW + 1), generator=generator)
    return stream_NT[:, :-1], stream_NT[:, 1:]


def tiny_masks(config: ModelConfig, slots: range, *, step: int = 0, window: int = WINDOW) -> Masks:
    return draw_masks(
        slots,
        entries=dropout_entries(config, window),
        dropout=config.dropout,
        seed=5,
        step=step,
        device=torch.device("cpu"),
    )


def gradients_one_by_one(
    model: LanguageModel, token_NT: Tensor, target_NT: Tensor, *, step: int = 0
) -> list[dict[str, Tensor]]:
    """Return each datum's gradient of its part of the mean loss, one backward pass per datum."""
    found = []
    for slot in range(len(token_NT)):
        masks = tiny_masks(model.config, range(slot, slot + 1), step=step)
        logit_1TV = model(token_NT[slot : slot + 1], masks)
        loss = F.cross_entropy(logit_1TV[0], target_NT[slot], reduction="sum")
        found.append(gradients_of(loss / target_NT.numel(), model))
    return found


def gradients_of(loss: Tensor, model: nn.Module) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    grads = torch.autograd.grad(loss, parameters, retain_graph=True)
    return dict(zip(names, grads, strict=True))


def top_k(value_RP: np.ndarray, k: int) -> list[tuple[int, int]]:
    """Return row and column of each row's k largest |values|, ties to the lowest column; sorted."""
    found = []
    for row, value_P in enumerate(value_RP):
        order = sorted(range(len(value_P)), key=lambda column: (-abs(value_P[column]), column))
        found += sorted((row, column) for column in order[:k])
    return found


def top_k_of_units(value_RP: np.ndarray, k: int, sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Like ``top_k``, of each unit alone; a unit of at most k columns keeps all. Sorted."""
    found, ends = [], np.cumsum(sizes)
    for size, end in zip(sizes, ends.tolist(), strict=True):
        own = top_k(value_RP[:, end - size : end], k)
        found += [(row, end - size + column) for row, column in own]
    return sorted(found)


def dense_like(parts: list[Tensor]) -> Tensor:
    """Return the per-unit gradients of one datum as one row, [P]."""
    return torch.cat([part.reshape(-1) for part in parts])


def each(count: int, make: Callable[[int], Tensor]) -> Tensor:
    return torch.stack([make(i) for i in range(count)])
