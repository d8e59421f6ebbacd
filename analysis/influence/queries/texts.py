"""Queries about predictions: of a completion, a text, a datum, a split, or a token over a split.

Shapes: N datum, T position.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from analysis.influence.queries.material import QueryMaterial
from analysis.influence.queries.query import Better, Query
from analysis.influence.queries.scored_text import ScoredText
from analysis.influence.queries.specification import Specification, chosen_split, require_measure
from analysis.run.stored_run import Split
from capture.errors import ConfigError, RunError

LOSS, LOG_PROBABILITY = "loss", "log-probability"
BETTER: dict[str, Better] = {LOSS: "lower", LOG_PROBABILITY: "higher"}

DATUM_INSTEAD = "Ask for a datum, as in datum:validation:0 or datum:test:0"


@dataclass(frozen=True, kw_only=True)
class CompletionQuery(Specification):
    """How probable a completion is after a prompt, or how much more so than a rival's."""

    kind: ClassVar[str] = "completion"
    prompt: str
    """Text before the completion, at least one token."""
    completion: str
    """Text whose tokens are scored."""
    rival: str | None = None
    """Another completion of the same prompt; the query is then log p(completion) − log p(rival)."""
    measure: str = LOG_PROBABILITY
    """log-probability: the sum over the completion's tokens, nats; loss: minus their mean."""

    def __post_init__(self) -> None:
        require_measure("completion.measure", self.measure)
        if self.rival is not None and self.measure == LOSS:
            problem = "cannot go with completion.rival, which compares log-probabilities"
            raise ConfigError("completion.measure", problem, "Leave it out")

    def title(self) -> str:
        rival = "" if self.rival is None else f" rather than {self.rival.strip()}"
        start = "loss of " if self.measure == LOSS else ""
        return f"{start}{self.prompt.strip()} → {self.completion.strip()}{rival}"

    def build(self, material: QueryMaterial) -> Query:
        """Raises ``ConfigError`` for an empty or unknown text, or one too long for the model."""
        text = self.scored(material, "completion", self.completion)
        if self.measure == LOSS:
            text = text.times(-1 / float(text.weight_NT.sum()))
        parts = text.parts(material)
        if self.rival is not None:
            parts += self.scored(material, "rival", self.rival).times(-1).parts(material)
        return self.query(parts, BETTER[self.measure])

    def scored(self, material: QueryMaterial, field: str, completion: str) -> ScoredText:
        prompt = material.encode(self.prompt, "completion.prompt")
        tokens = material.encode(completion, f"completion.{field}")
        num_inputs, most = len(prompt) + len(tokens) - 1, material.longest
        if most is not None and num_inputs > most:
            problem = f"has {num_inputs} tokens before its last one, but the model takes {most}"
            raise ConfigError(f"completion.{field}", problem, "Shorten the prompt")
        scored = material.run.config.corpus.scored
        if scored is not None and len(tokens) > scored:
            problem = f"has {len(tokens)} tokens, but the run's model predicts the last {scored}"
            raise ConfigError(f"completion.{field}", problem)
        require_layout(material, len(prompt))
        return ScoredText.ending(prompt, tokens)


@dataclass(frozen=True, kw_only=True)
class TextQuery(Specification):
    """Mean loss of a text that the user gives, cut into windows as the corpus is."""

    kind: ClassVar[str] = "text"
    text: str
    """The text, of at least two tokens."""

    def title(self) -> str:
        words = self.text.split()
        return "loss of text " + " ".join(words[:6]) + (" …" if len(words) > 6 else "")

    def build(self, material: QueryMaterial) -> Query:
        """Raises ``ConfigError`` for a text of fewer than two tokens or with an unknown one."""
        stream = np.array(material.encode(self.text, "text"))
        if len(stream) < 2:
            raise ConfigError("text", "has one token, and a loss needs two", "Give a longer text")
        size = material.run.config.corpus.window
        if material.run.config.corpus.scored is not None:
            problem = "cannot be asked of a task, whose datums have a fixed layout"
            raise ConfigError("text", problem, DATUM_INSTEAD)
        parts = []
        for start in range(0, len(stream) - 1, size):
            piece = stream[start : start + size + 1]
            one = ScoredText.mean(
                piece[None, :-1], piece[None, 1:], np.ones((1, len(piece) - 1)) > 0
            )
            parts += one.times(-(len(piece) - 1) / (len(stream) - 1)).parts(material)
        return self.query(parts, "lower")


@dataclass(frozen=True, kw_only=True)
class DatumQuery(Specification):
    """Mean loss of one datum of a split, without dropout."""

    kind: ClassVar[str] = "datum"
    datum: int
    split: str = "train"

    def title(self) -> str:
        return f"loss of {self.split} datum {self.datum}"

    def build(self, material: QueryMaterial) -> Query:
        """Raises ``RunError`` for a split or a datum that the run lacks."""
        text = material.text(chosen_split(material, self.split))
        if not 0 <= self.datum < len(text.token_NT):
            problem = f"has no {self.split} datum {self.datum}"
            last = len(text.token_NT) - 1
            raise RunError(material.run.uri, problem, f"They are numbered from 0 to {last}")
        own = slice(self.datum, self.datum + 1)
        return self.query(mean_loss(material, text.token_NT[own], text.target_NT[own]), "lower")


@dataclass(frozen=True, kw_only=True)
class SplitQuery(Specification):
    """Mean loss of a whole split, without dropout."""

    kind: ClassVar[str] = "loss"
    split: str = ""
    """Default: validation, else test, else train, which the name then says."""

    def title(self) -> str:
        return f"{self.split or 'held-out'} loss"

    def build(self, material: QueryMaterial) -> Query:
        """Raises ``RunError`` for a split that the run lacks."""
        split = chosen_split(material, self.split)
        text = material.text(split)
        found = self.query(mean_loss(material, text.token_NT, text.target_NT), "lower")
        if self.name or self.split or split != "train":
            return found
        return replace(found, name=f"{split} loss (no held-out text)")


@dataclass(frozen=True, kw_only=True)
class TokenQuery(Specification):
    """Mean log-probability of a token at the positions of a split where it comes next."""

    kind: ClassVar[str] = "token"
    token: str
    split: str = ""
    """Default: validation, else test, else train."""

    def title(self) -> str:
        return f"log p of {self.token}" + (f" on {self.split}" if self.split else "")

    def build(self, material: QueryMaterial) -> Query:
        """Raises ``ConfigError`` for an unknown token, ``RunError`` if it never comes next."""
        split = chosen_split(material, self.split)
        text, wanted = material.text(split), material.token(self.token)
        scored_NT = material.scored_NT(text.target_NT) & (text.target_NT == wanted)
        require_positions(material, self.token, split, scored_NT)
        own = ScoredText.mean(text.token_NT, text.target_NT, scored_NT)
        return self.query(own.parts(material), "higher")


def require_layout(material: QueryMaterial, found: int) -> None:
    """Raise ``ConfigError`` if a task's model never reads so few tokens before a completion.

    The loss of such a task counts at the last positions of a window of fixed size; a model that
    reads from the left gives the same predictions from the window's start.
    """
    corpus = material.run.config.corpus
    if corpus.scored is not None and found <= corpus.window - corpus.scored:
        problem = f"has {found} tokens, but a datum of {corpus.kind} has "
        problem += f"{corpus.window - corpus.scored + 1} or more"
        raise ConfigError("completion.prompt", problem, DATUM_INSTEAD)


def mean_loss(material: QueryMaterial, token_NT: np.ndarray, target_NT: np.ndarray) -> list:
    """Return the parts of a text's mean cross-entropy, nats per token."""
    scored_NT = material.scored_NT(target_NT)
    return ScoredText.mean(token_NT, target_NT, scored_NT, -1.0).parts(material)


def require_positions(
    material: QueryMaterial, token: str, split: Split, scored_NT: np.ndarray
) -> None:
    """Raise ``RunError`` if a token is the target of no position of a split."""
    if not scored_NT.any():
        problem = f"has no position in its {split} text where {token!r} comes next"
        raise RunError(material.run.uri, problem, "Choose another token or split")
