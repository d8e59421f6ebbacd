"""Models and data for tests of custom training loops."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from capture.config.settings import Config
from capture.corpus.datums import Corpus, load_corpus
from capture.engine.step_plan import StepPlan
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


class Sometimes(Small):
    """Leaves its layer out of every second step; the loop sets ``step``."""

    step = 0

    def forward(self, token_NT: Tensor) -> Tensor:
        x_NTD = self.embedding(token_NT)
        return self.out(self.norm(x_NTD if self.step % 2 else self.layer(x_NTD)))


def tokens(num_datums: int = 12) -> Tensor:
    """Return random tokens with the target of the last one, int64 [N, T + 1]."""
    return torch.from_numpy(np.random.default_rng(0).integers(0, V, (num_datums, T + 1)))


def loss_of(model: nn.Module, token_NT: Tensor) -> Tensor:
    return F.cross_entropy(model(token_NT[:, :-1]).flatten(0, 1), token_NT[:, 1:].flatten())


def uri(folder: Path, name: str = "run") -> str:
    return str(folder / name)


def model_and_plan(config: Config) -> tuple[LanguageModel, Corpus, StepPlan]:
    """Return the initial model, the corpus and the planned steps of ``ontogeny capture``."""
    corpus = load_corpus(config.corpus, batch=config.training.batch)
    shape = {"vocabulary": len(corpus.vocabulary.tokens), "window": config.corpus.window}
    model = fresh_model(config.model, **shape, seed=config.run.seed)
    return model, corpus, StepPlan(config, corpus)


def logits(model: LanguageModel, token_NT: Tensor) -> Tensor:
    return model(token_NT, Masks.none())
