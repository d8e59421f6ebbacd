"""Progress measures of modular addition: what the model computes with which frequencies.

Source: Nanda et al. 2023, "Progress measures for grokking via mechanistic interpretability",
section 5. Shapes: A, B number, S sum, V token, K frequency, D width.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from analysis.trajectory.metrics.row import WHOLE, Row
from analysis.trajectory.observed.model import Observed
from analysis.trajectory.observed.text import Text

NUM_KEYS = 5
"""Frequencies that count as key: the strongest of the checkpoint. The paper's network has five."""
LEAST_MODULUS = 4 * NUM_KEYS + 1
"""With a smaller one the strongest and the weakest frequencies are not apart."""


@dataclass(frozen=True, eq=False)
class SumWaves:
    """The part of the logits that depends on a + b alone, by frequency."""

    logits_ABV: np.ndarray
    """Logits of all pairs."""
    wave_KS: np.ndarray
    """Fourier coefficients over the sum, by frequency from 1, complex [K, V]."""

    @classmethod
    def of(cls, logits_ABV: np.ndarray) -> "SumWaves":
        p = len(logits_ABV)
        mean_SV = np.stack(
            [logits_ABV[np.arange(p), (s - np.arange(p)) % p].mean(0) for s in range(p)]
        )
        return cls(logits_ABV, np.fft.fft(mean_SV, axis=0)[1 : (p - 1) // 2 + 1] / p)

    @property
    def share_K(self) -> np.ndarray:
        """Share of the variance of the logits over pairs at each frequency of a + b."""
        centred = self.logits_ABV - self.logits_ABV.mean((0, 1))
        power_K = 2 * (np.abs(self.wave_KS) ** 2).sum(1)
        return power_K / max(float((centred**2).mean((0, 1)).sum()), 1e-30)

    def part(self, frequencies: np.ndarray) -> np.ndarray:
        """Return the part of the logits at these rows of ``wave_KS``, [A, B, V]."""
        p = len(self.logits_ABV)
        phase_SK = np.exp(2j * np.pi * np.outer(np.arange(p), frequencies + 1) / p)
        part_SV = 2 * np.real(phase_SK @ self.wave_KS[frequencies])
        return part_SV[np.add.outer(np.arange(p), np.arange(p)) % p]


def modular_waves(model: Observed, text: Text) -> Iterator[Row]:
    """Frequencies of modular addition, and the loss with them alone and without them.

    ``sum_waves``: share of the variance of the logits, over all pairs, at each frequency of a + b,
    and at the five strongest together; null: random logits. ``restricted_loss``: loss on all pairs
    of these five alone; ``excluded_loss``: loss on training pairs without them; null: the five
    weakest instead. ``embedding_gini``: inequality, 0 to 1, of the embedding's power among
    frequencies; null: numbers in random order.
    """
    p = text.modulus
    assert p
    assert text.training
    waves = SumWaves.of(logits_of_pairs(model, p))
    share_K = waves.share_K
    order_K = np.argsort(-share_K, kind="stable")
    keys, others = order_K[:NUM_KEYS], order_K[-NUM_KEYS:]
    one = 2 / (p * p - 1)
    shape = waves.logits_ABV.shape
    null = text.remember("strongest random waves", lambda: strongest_of_random(shape, text.seed))
    yield Row("sum_waves", WHOLE, float(share_K[keys].sum()), p * p, null=null)
    for number, share in enumerate(share_K, start=1):
        yield Row("sum_waves", f"frequency {number}", float(share), p * p, null=one)
    every, trained = np.ones((p, p), bool), np.zeros((p, p), bool)
    trained[text.training.token_NT[:, 0], text.training.token_NT[:, 1]] = True
    mean_V = waves.logits_ABV.mean((0, 1))
    losses = [loss_on(mean_V + waves.part(kept), every) for kept in (keys, others)]
    yield Row("restricted_loss", WHOLE, losses[0], p * p, null=losses[1])
    losses = [loss_on(waves.logits_ABV - waves.part(out), trained) for out in (keys, others)]
    yield Row("excluded_loss", WHOLE, losses[0], int(trained.sum()), null=losses[1])
    yield embedding_row(model, p, text.seed)


def strongest_of_random(shape: tuple[int, ...], seed: int) -> float:
    """Return the share of the variance at the strongest frequencies of Gaussian logits.

    More than their number times the share expected of one, because they are chosen as the largest.
    """
    random_ABV = np.random.default_rng(seed).normal(size=shape)
    return float(np.sort(SumWaves.of(random_ABV).share_K)[-NUM_KEYS:].sum())


def logits_of_pairs(model: Observed, p: int) -> np.ndarray:
    """Return the logits at "=" after every pair, float64 [A, B, V]."""
    a_N, b_N = np.divmod(np.arange(p * p), p)
    token_N3 = torch.from_numpy(np.stack([a_N, b_N, np.full(p * p, p)], axis=1))
    found = [model.logits(part)[:, -1].double().cpu() for part in token_N3.split(2048)]
    return torch.cat(found).numpy().reshape(p, p, -1)


def loss_on(logits_ABV: np.ndarray, chosen_AB: np.ndarray) -> float:
    """Return the mean cross-entropy of a + b mod p over the chosen pairs, nats."""
    p = len(logits_ABV)
    sum_AB = np.add.outer(np.arange(p), np.arange(p)) % p
    logits_NV = torch.from_numpy(np.ascontiguousarray(logits_ABV[chosen_AB]))
    return float(F.cross_entropy(logits_NV, torch.from_numpy(sum_AB[chosen_AB])))


def embedding_row(model: Observed, p: int, seed: int) -> Row:
    """Return the Gini coefficient of the embedding's power among frequencies."""
    embedding = embedding_of(model)[:p].detach().double().cpu().numpy()
    mixed = embedding[np.random.default_rng(seed).permutation(p)]
    return Row("embedding_gini", WHOLE, gini(powers(embedding)), p, null=gini(powers(mixed)))


def embedding_of(model: Observed) -> Tensor:
    """Return the weights of the token embedding, [V, D]."""
    network: Any = model.network
    own = getattr(network, "encoder", None)
    return (own or network.get_input_embeddings()).weight


def powers(embedding_AD: np.ndarray) -> np.ndarray:
    """Return the power of each frequency from 1, summed over the width, [K]."""
    p = len(embedding_AD)
    return (np.abs(np.fft.fft(embedding_AD, axis=0)[1 : (p - 1) // 2 + 1]) ** 2).sum(1)


def gini(power_K: np.ndarray) -> float:
    """Return the Gini coefficient: 0 if all are equal, 1 − 1/K if one has everything."""
    ascending = np.sort(power_K)
    count = len(ascending)
    weights = 2 * np.arange(1, count + 1) - count - 1
    return float((weights * ascending).sum() / (count * max(ascending.sum(), 1e-30)))
