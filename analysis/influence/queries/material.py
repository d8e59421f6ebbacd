"""What queries need of a run: its model as a function of the weights, its texts and its tokens.

Shapes: N datum, T position, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from analysis.ablation.config import SplitText
from analysis.ablation.replacement import mean_states
from analysis.ablation.subjects import ENDS, SubjectSite
from analysis.influence.queries.called_model import CalledModel
from analysis.influence.queries.query import Weights
from analysis.run.ablatable import held_out_splits
from analysis.run.custom_loop import no_model_error
from analysis.run.names import token_id
from analysis.run.run import Run
from analysis.run.stored_run import Split
from capture.corpus.datums import WORDS
from capture.corpus.text import basic_english
from capture.corpus.tokenizer import HFTokenizer
from capture.errors import ConfigError, RunError
from capture.models.huggingface import stored_transposed
from capture.models.perceptron import Perceptron
from capture.models.transformer import AnyModel, LanguageModel
from capture.parts import KnownModel


@dataclass(frozen=True, eq=False)
class QueryMaterial:
    """A run as queries see it; the model and the tokens are read once, when they are needed."""

    run: Run

    @cached_property
    def model(self) -> AnyModel:
        """The last model, for evaluation; parameters that a query is not given keep its values.

        Raises ``RunError`` for a run of a custom loop whose model the user has not passed.
        """
        if not self.run.from_custom_loop:
            return self.run.network()
        if self.run.given.module is None:
            raise no_model_error(self.run.uri)
        # Callers use what it has in common with other models.
        return cast(AnyModel, self.run.restored(self.run.given.copy()))

    @cached_property
    def parted(self) -> KnownModel:
        """The run's model with its parts; raises what ``Run.parted`` raises."""
        return self.run.parted()

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Parameter name → shape; of a custom loop without its model, the captured ones."""
        if self.layout_alone:
            return dict(self.run.layout.shapes)
        return {name: tuple(own.shape) for name, own in self.model.named_parameters()}

    @cached_property
    def transposed(self) -> frozenset[str]:
        """Names of the weights that are stored [inputs, outputs]."""
        if self.layout_alone:
            return frozenset(self.run.layout.transposed)
        return stored_transposed(self.model)

    @property
    def layout_alone(self) -> bool:
        """Whether only names and shapes of the captured parameters are known of the model."""
        return self.run.from_custom_loop and self.run.given.module is None

    @cached_property
    def ids(self) -> dict[str, int]:
        """Token → id."""
        return {token: i for i, token in enumerate(self.run.tokens)}

    @cached_property
    def longest(self) -> int | None:
        """Largest number of input tokens that the model takes; None if nothing limits it."""
        if isinstance(self.model, LanguageModel):
            return len(self.model.positions_TD)
        if isinstance(self.model, Perceptron):
            return self.model.pixels
        config = getattr(getattr(self.model, "whole", self.model), "config", None)
        return getattr(config, "max_position_embeddings", None)

    def logits(self, weights: Weights, token_NT: Tensor) -> Tensor:
        """Return logits of a model with these weights, without dropout, [N, T, V]."""
        device = next(iter(weights.values())).device
        if self.run.from_custom_loop:
            called = self.called.to(device)
            own = {f"network.{name}": value for name, value in weights.items()}
            return functional_call(called, own, (token_NT.to(device),))
        model = self.model.to(device)
        return functional_call(model, dict(weights), (token_NT.to(device),))

    @cached_property
    def called(self) -> CalledModel:
        """A user's model as a module that returns logits."""
        return CalledModel(self.model, self.run.given.parts)

    def scored_NT(self, target_NT: np.ndarray) -> np.ndarray:
        """Return at which positions of these windows the loss counts, bool [N, T]."""
        scored = self.run.config.corpus.scored
        first = 0 if scored is None else target_NT.shape[1] - scored
        return np.broadcast_to(np.arange(target_NT.shape[1]) >= first, target_NT.shape)

    def encode(self, text: str, where: str) -> list[int]:
        """Return the token ids of a text; ``where`` names it in errors.

        Raises ``ConfigError`` for a text without tokens, and for a word that the run's vocabulary
        lacks.
        """
        words = self.run.config.corpus.tokenizer == WORDS
        names = basic_english(text) if words else self.tokenizer.tokens(text)
        if not names:
            raise ConfigError(where, "is empty", "Give at least one token")
        for name in names:
            if name not in self.ids:
                try:
                    token_id(self.run.tokens, name)
                except ConfigError as error:
                    raise ConfigError(
                        where, f"{error.where} {error.problem}", error.remedy
                    ) from error
        return [self.ids[name] for name in names]

    @cached_property
    def tokenizer(self) -> HFTokenizer:
        return HFTokenizer(self.run.config.corpus.tokenizer)

    def token(self, token: str) -> int:
        """Return the id of a token; raise ``ConfigError`` for an unknown one."""
        return token_id(self.run.tokens, token)

    @cached_property
    def means(self) -> dict[SubjectSite, Tensor]:
        """Mean of each entry of every state over the training text, [C] each, in the last model."""
        assert isinstance(self.model, LanguageModel)
        layers = range(len(self.model.layers))
        sites = [SubjectSite(n, point) for n in layers for ends in ENDS.values() for point in ends]
        with torch.no_grad():
            return mean_states(self.model, self.text("train").token_NT, sites)

    def text(self, split: Split) -> SplitText:
        """Return inputs and targets of a split.

        Raises ``RunError`` if the run lacks it, and for datums of different length.
        """
        if self.run.length_N is not None:
            problem = "has datums of different length, about which no query can ask"
            raise RunError(
                self.run.uri, problem, "Record datums of one length, such as packed text"
            )
        known = ["train", *held_out_splits(self.run)]
        if split not in known:
            remedy = f"Choose from: {', '.join(known)}"
            raise RunError(self.run.uri, f"has no {split} split", remedy)
        return SplitText.of(self.run, split)

    @cached_property
    def held_out(self) -> Split:
        """The validation split, else the test split, else the training text."""
        files = {file.key for file in self.run.start.files_of("corpus")}
        for split in ("validation", "test"):
            if f"corpus/{split}.parquet" in files:
                return split
        return "train"


def as_tokens(rows: Sequence[Sequence[int]] | np.ndarray) -> Tensor:
    """Return token ids as torch wants them, int64."""
    return torch.from_numpy(np.asarray(rows, dtype=np.int64))
