"""A transformer that learns two rules at known times: a token that foretells the next one.

2 follows 1 from the first step; 4 follows 3 from step ``BEGINNING`` on. Other tokens are random.
"""

import copy

import numpy as np
import torch
from torch.nn import functional as F

from capture.models.transformer import AnyModel, ModelConfig, fresh_model

VOCABULARY, WINDOW, BEGINNING, STEPS = 20, 12, 120, 400


def skilled_windows(
    rng: np.random.Generator, count: int, *, both: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs and targets, int64 [N, T]; without ``both``, any token follows 3."""
    token_NT = rng.integers(5, VOCABULARY, (count, WINDOW + 1))
    for token_T in token_NT:
        for number, place in enumerate(rng.permutation(np.arange(0, WINDOW - 1, 2))[:4]):
            token_T[place] = 1 if number % 2 == 0 else 3
            if number % 2 == 0 or both:
                token_T[place + 1] = token_T[place] + 1
    return token_NT[:, :-1], token_NT[:, 1:]


def skilled_models() -> dict[int, AnyModel]:
    """Train it; return the models after some 50 numbers of steps."""
    rng = np.random.default_rng(0)
    shape = ModelConfig(layers=2, width=16, hidden=32, heads=2, dropout=0.0)
    model = fresh_model(shape, vocabulary=VOCABULARY, window=WINDOW, seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    wanted = set(np.round(np.expm1(np.linspace(0, np.log1p(STEPS), 40))).astype(int).tolist())
    wanted |= set(range(BEGINNING, BEGINNING + 60, 6))
    found = {0: copy.deepcopy(model)}
    for step in range(STEPS):
        windows = skilled_windows(rng, 16, both=step >= BEGINNING)
        token_NT, target_NT = (torch.from_numpy(each) for each in windows)
        loss = F.cross_entropy(model(token_NT).flatten(0, 1), target_NT.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step + 1 in wanted:
            found[step + 1] = copy.deepcopy(model)
    return {step: each.eval().requires_grad_(False) for step, each in found.items()}
