"""A transformer of attention alone whose heads are built by hand: it copies by an induction head.

The stream holds four blocks: the token, the position, the token before (written by L0H0), and what
to predict (written by L1H0). Head L0H0 looks at the token before. Head L1H0 looks at the token
whose predecessor equals the present token, by K-composition with L0H0, and copies it. The other
two heads are zero. Olsson et al. 2022 describe this circuit.
"""

import torch
from torch import Tensor

from capture.models.transformer import LanguageModel, ModelConfig, fresh_model

SHARP = 60.0
"""Scores at the places to look at, beside 0 elsewhere."""


def induction_model(num_tokens: int, window: int) -> LanguageModel:
    """Return the model in evaluation mode; ``num_tokens`` and ``window`` must both be even."""
    V, T = num_tokens, window
    width = 3 * V + T
    head = width // 2
    config = ModelConfig(
        layers=2, width=width, hidden=0, heads=2, dropout=0.0, positions="learned", norm="none"
    )
    model = fresh_model(config, vocabulary=V, window=T, seed=0)
    for weight in model.parameters():
        torch.nn.init.zeros_(weight)
    token, place, before, after = 0, V, V + T, 2 * V + T
    with torch.no_grad():
        model.encoder.weight[:, token : token + V] = torch.eye(V)
        model.positions.weight[:, place : place + T] = torch.eye(T)
        model.decoder.weight[:, after : after + V] = 20 * torch.eye(V)
        one, two = (model.get_submodule(f"layers.{n}.self_attn") for n in range(2))
        write(one, head, "q", shifted(T), place)
        write(one, head, "k", torch.eye(T), place)
        write(one, head, "v", torch.eye(V), token)
        one.out_proj.weight[before : before + V, :V] = torch.eye(V)  # pyright: ignore
        write(two, head, "q", SHARP * head**0.5 * torch.eye(V), token)
        write(two, head, "k", torch.eye(V), before)
        write(two, head, "v", torch.eye(V), token)
        two.out_proj.weight[after : after + V, :V] = torch.eye(V)  # pyright: ignore
    return model.eval().requires_grad_(False)


def shifted(window: int) -> Tensor:
    """Return the map from each position to the one before; the first looks at itself."""
    found_TT = SHARP * (3 * window) ** 0.5 * torch.eye(window).roll(-1, 0)
    found_TT[-1] = 0
    found_TT[0, 0] = SHARP
    return found_TT


def write(attention: torch.nn.Module, head: int, kind: str, own: Tensor, start: int) -> None:
    """Set the first head's queries, keys or values to read one block of the stream."""
    row = 2 * head * "qkv".index(kind)  # two heads; the first is the one that is built
    weight = attention.in_proj_weight
    weight[row : row + len(own), start : start + own.shape[1]] = own  # pyright: ignore
