"""The model that all methods train alternately: the study's, on real text if available.

The methods share its parameters, so each of them takes steps of the same training. Outliers are
therefore spread over units as in a run, and all methods work on similar weights.

Shapes: N datum, T position, K maskable entries of one datum, M target of the batch.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from capture.config.reading import make_config
from capture.corpus.datums import Corpus, Datums, Vocabulary, cut_windows, load_corpus
from capture.corpus.wikitext import FILE_NAMES
from capture.engine.engine import Engine
from capture.engine.observer import Observer
from capture.engine.step_plan import PlannedStep, StepPlan
from capture.gradients.factors import choose_units
from capture.models.dropout import Masks
from capture.models.transformer import LanguageModel, fresh_model

VOCABULARY = 28_782
"""Size of the study's vocabulary (WikiText-2's training split); sets the unembedding's cost."""
ZIPF_TOKENS = 400_000
CONFIG = {"training": {"epochs": 10**6, "decay": 1.0, "device": "cpu"}}
"""The study's settings, except that training does not end and the learning rate stays 5."""


@dataclass(frozen=True)
class Workbench:
    """Model, optimizer, observer and data: the inputs of every method."""

    plan: StepPlan
    engine: Engine
    observer: Observer
    planned_steps: Iterator[PlannedStep]

    @property
    def model(self) -> LanguageModel:
        assert isinstance(self.engine.model, LanguageModel)
        return self.engine.model

    @property
    def units(self) -> dict[str, nn.Parameter]:
        """The captured parameters, by name: those of the body."""
        return self.engine.units

    @property
    def others(self) -> dict[str, nn.Parameter]:
        """The parameters of embedding and unembedding, by name."""
        return {n: p for n, p in self.model.named_parameters() if n not in self.units}

    @property
    def num_targets(self) -> int:
        return self.plan.config.training.batch * self.plan.config.corpus.window

    def batch(self, planned: PlannedStep) -> tuple[Tensor, Tensor]:
        """Return tokens and targets, both [N, T]."""
        datum_N = torch.from_numpy(planned.datum_N)
        return self.observer.token_NT[datum_N], self.observer.target_NT[datum_N]

    def masks(self, planned: PlannedStep) -> Masks:
        return self.engine.masks(
            range(len(planned.datum_N)), planned.step, self.plan.config.corpus.window
        )

    def masks_NK(self, planned: PlannedStep) -> Tensor:
        """Return the masks as a tensor, for methods that split the batch by datum."""
        pool_NK = self.masks(planned).pool_NK
        assert pool_NK is not None
        return pool_NK

    def update(self) -> None:
        """Clip the parameters' gradients and take the SGD step."""
        clip = self.plan.config.training.clip
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        self.engine.optimizer.step()


def make_workbench(folder: Path) -> tuple[Workbench, str]:
    """Return the workbench and a description of its text."""
    corpus, text = make_corpus(folder)
    plan = StepPlan(make_config(CONFIG), corpus)
    config = plan.config
    model = fresh_model(
        config.model, vocabulary=VOCABULARY, window=config.corpus.window, seed=config.run.seed
    )
    units = choose_units(model, config.capture.units)
    engine = Engine(model, config.training, units=units, last_only=False, seed=config.run.seed)
    observer = Observer(plan, engine, config.capture.kinds)
    return Workbench(plan, engine, observer, plan.planned_steps(0)), text


def make_corpus(folder: Path) -> tuple[Corpus, str]:
    """Return the corpus in the folder and its description.

    Ids outside the vocabulary become <unk>. Without a text in the folder the tokens are random.
    """
    config = make_config(CONFIG)
    if not any(folder.glob("*.txt")) and not any(folder.glob("*.tokens")):
        stream = zipf_tokens(ZIPF_TOKENS, VOCABULARY)
        datums = cut_windows(stream, config.corpus.window)
        names = [str(token) for token in range(VOCABULARY)]
        counts = np.bincount(stream, minlength=VOCABULARY)
        text = f"random tokens with Zipf's frequencies ({len(datums):,} datums)"
        return Corpus(Vocabulary(names, counts), datums, None, None), text
    splits = any((folder / name).is_file() for name in FILE_NAMES["train"])
    values = {"kind": "wikitext2" if splits else "text", "path": str(folder)}
    found = load_corpus(make_config({"corpus": values}).corpus, batch=config.training.batch)
    train = Datums(limit_ids(found.train.token_NT), limit_ids(found.train.target_NT))
    return Corpus(found.vocabulary, train, None, None), f"WikiText-2 ({len(train):,} datums)"


def limit_ids(token_NT: np.ndarray) -> np.ndarray:
    """Replace ids outside the study's vocabulary by 0, the id of <unk>."""
    return np.where(token_NT < VOCABULARY, token_NT, 0).astype(np.int32)


def zipf_tokens(num_tokens: int, vocabulary: int) -> np.ndarray:
    """Return independent random tokens; the frequency of rank r is proportional to 1/(r + 2.7)."""
    frequency_V = 1 / (np.arange(1, vocabulary + 1) + 2.7)
    uniform = np.random.default_rng(0).random(num_tokens) * math.fsum(frequency_V)
    ranks = np.searchsorted(frequency_V.cumsum(), uniform)
    return np.minimum(ranks, vocabulary - 1).astype(np.int32)


def mean_loss(logit_NTV: Tensor, target_NT: Tensor) -> Tensor:
    return F.cross_entropy(logit_NTV.flatten(0, 1), target_NT.flatten())
