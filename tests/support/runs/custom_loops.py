"""Training loops as people write them, on models small enough for tests."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from capture.config.settings import Config
from capture.corpus.datums import Corpus, load_corpus
from capture.engine.step_plan import Plan
from capture.models.dropout import Masks
from capture.models.transformer import LanguageModel, fresh_model
from capture.shifts.outliers import OutlierConfig

T, D, V = 5, 6, 11
TOP = OutlierConfig(k=20)


class Small(nn.Module):
    """An embedding, a layer, a norm and an unembedding."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(V, D)
        self.layer = nn.Linear(D, D)
        self.norm = nn.LayerNorm(D)
        self.out = nn.Linear(D, V)

    def forward(self, token_NT: Tensor) -> Tensor:
        x_NTD = self.embedding(token_NT)
        return self.out(self.norm(x_NTD + torch.tanh(self.layer(x_NTD))))


def tokens(num_datums: int = 12) -> Tensor:
    """Datums with the target of the last token, [N, T + 1]."""
    return torch.from_numpy(np.random.default_rng(0).integers(0, V, (num_datums, T + 1)))


def loss_of(model: nn.Module, token_NT: Tensor) -> Tensor:
    return F.cross_entropy(model(token_NT[:, :-1]).flatten(0, 1), token_NT[:, 1:].flatten())


def uri(folder: Path, name: str = "run") -> str:
    return str(folder / name)


def same_as_ours(config: Config) -> tuple[LanguageModel, Corpus, Plan]:
    """The model, text and order of steps that a capture with this configuration has."""
    corpus = load_corpus(config.corpus, batch=config.training.batch)
    shape = {"vocabulary": len(corpus.vocabulary.tokens), "window": config.corpus.window}
    model = fresh_model(config.model, **shape, seed=config.run.seed)
    return model, corpus, Plan(config, corpus)


def logits(model: LanguageModel, token_NT: Tensor) -> Tensor:
    return model(token_NT, Masks.none())
