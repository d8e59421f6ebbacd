"""Which tokens and which neuron to look at: those asked for, those that attribution named, or,
with neither, what one would look at without a record.

Shapes: V token of the vocabulary, K chosen token.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from analysis.activations.scores import By, require_neuron
from analysis.jobs.tables import marker_key, read_table, table_key
from analysis.run.names import token_id
from analysis.run.run import Run
from capture.corpus.datums import UNKNOWN
from capture.errors import ConfigError
from capture.models.transformer import LanguageModel

ATTRIBUTION = "attribute"
"""The job whose table ``tokens`` says which tokens taught which neurons."""
NUM_TOKENS = 20
"""Tokens looked at by default."""
NUM_COMPARED = 3
"""Tokens of a neuron in the figures."""
NUM_OTHERS = 6
"""Frequent tokens beside them."""
FREQUENT = 200
"""The others are drawn from so many most frequent words."""

ATTRIBUTED = pa.schema(
    [
        pa.field("level", pa.string()),
        pa.field("unit", pa.string()),
        pa.field("group", pa.int32()),  # the neuron
        pa.field("token_id", pa.int32()),
    ]
)
"""What is read of the tokens that attribution found; strongest neuron and token first."""


@dataclass(frozen=True, kw_only=True)
class ActivationConfig:
    """What is looked at."""

    tokens: tuple[str, ...] = ()
    """By default those that attribution found, of the asked neuron and then of the strongest ones,
    or else the most frequent words."""
    neuron: str | None = None
    """UNIT:N, the compared one; by default the strongest attributed one with such a token, or else
    the one most active on the first token."""
    by: By = "target"
    """Whether a token's positions are those that predict it (target) or read it (input)."""
    step: int | None = None
    """Of the checkpoint; null is the last one."""
    seed: int = 0
    """Draws the tokens for comparison, and positions of very frequent tokens."""

    def __post_init__(self) -> None:
        if self.by not in ("target", "input"):
            raise ConfigError("activations.by", f"got {self.by!r}, must be target or input")
        if self.neuron is not None and not self.neuron.rpartition(":")[2].isdecimal():
            problem = f"got {self.neuron!r}, must be UNIT:N, as in layers.2.linear2.weight:96"
            raise ConfigError("activations.neuron", problem)

    @property
    def place(self) -> tuple[str, int] | None:
        """Unit and column of the asked neuron."""
        if self.neuron is None:
            return None
        unit, _, column = self.neuron.rpartition(":")
        return unit, int(column)

    @property
    def wants_attribution(self) -> bool:
        return not self.tokens or self.neuron is None


@dataclass(frozen=True)
class ComparisonChoice:
    """What the figures compare."""

    unit: str
    neuron: int
    neuron_from: str
    """asked, attribution or activation."""
    tokens: tuple[int, ...]
    """The tokens in question, at least one."""
    others: tuple[int, ...]
    """Frequent words drawn at random."""


def require_known(run: Run, model: LanguageModel, config: ActivationConfig) -> None:
    """Raises for a neuron that the model, or a token that the vocabulary, does not have."""
    if config.place:
        require_neuron(model, *config.place)
    for token in config.tokens:
        token_id(run.tokens, token)


def attributed_tokens(run: Run) -> pd.DataFrame | None:
    """``ATTRIBUTED`` of neurons, or None if attribution has not been done.

    Raises ``RunError`` if it was done on fewer steps than the run has.
    """
    keys = marker_key(ATTRIBUTION), table_key(ATTRIBUTION, "tokens")
    if not all(map(run.store.exists, keys)):
        return None
    return read_table(run, ATTRIBUTION, "tokens", ATTRIBUTED, {"level": ["neuron"]})


def choose_tokens(
    names: Sequence[str], count_V: np.ndarray, config: ActivationConfig, taught: pd.DataFrame | None
) -> tuple[np.ndarray, str]:
    """Ids of tokens that have positions, each once, int64 [K], and where they are from.

    Raises ``ConfigError`` for an asked one without positions.
    """
    if config.tokens:
        number = {name: token for token, name in enumerate(names)}
        token_K = np.array(list(dict.fromkeys(number[name] for name in config.tokens)))
        for token in token_K[count_V[token_K] == 0]:
            problem = f"{names[token]!r} is nowhere in the training datums as {config.by}"
            raise ConfigError("activations.tokens", problem, "Choose another token")
        return token_K, "asked"
    if taught is not None:
        first = tokens_of(taught, *config.place) if config.place else []
        token_K = np.array(list(dict.fromkeys([*first, *taught["token_id"]])), np.int64)
        token_K = token_K[count_V[token_K] > 0][:NUM_TOKENS]
        if len(token_K):
            return token_K, "attribution"
    return frequent_words(names, count_V)[:NUM_TOKENS], "frequency"


def frequent_words(names: Sequence[str], count_V: np.ndarray) -> np.ndarray:
    """Tokens that have positions, most frequent first: words, or anything if there are none."""
    order_V = np.argsort(-count_V, kind="stable")
    order_V = order_V[count_V[order_V] > 0]
    words = [token for token in order_V if is_word(names[int(token)])]
    return np.array(words) if words else order_V


def is_word(token: str) -> bool:
    return token != UNKNOWN and any(letter.isalnum() for letter in token)


def choose_comparison(
    names: Sequence[str],
    count_V: np.ndarray,
    token_K: np.ndarray,
    config: ActivationConfig,
    taught: pd.DataFrame | None,
    ranks: pd.DataFrame,
) -> ComparisonChoice:
    """The neuron, its tokens (the asked ones if any are), and words to compare these with."""
    asked = [int(token) for token in token_K] if config.tokens else []
    unit, neuron, neuron_from = choose_neuron(config, asked, taught, ranks)
    own = [] if taught is None else tokens_of(taught, unit, neuron)
    tokens = asked or [token for token in own if count_V[token]] or token_K.tolist()
    words = frequent_words(names, count_V)[:FREQUENT]
    words = words[~np.isin(words, [*tokens, *own])]
    others = np.random.default_rng(config.seed).permutation(words)[:NUM_OTHERS]
    return ComparisonChoice(
        unit, neuron, neuron_from, tuple(tokens[:NUM_COMPARED]), tuple(others.tolist())
    )


def choose_neuron(
    config: ActivationConfig, asked: list[int], taught: pd.DataFrame | None, ranks: pd.DataFrame
) -> tuple[str, int, str]:
    """Unit, column, and who chose: the user, attribution, or the mean on the first token."""
    if config.place:
        return *config.place, "asked"
    if taught is not None and asked:
        taught = taught[taught["token_id"].isin(asked)]
    if taught is not None and len(taught):
        return str(taught["unit"].iloc[0]), int(taught["group"].iloc[0]), "attribution"
    return str(ranks["max_unit"].iloc[0]), int(ranks["max_neuron"].iloc[0]), "activation"


def tokens_of(taught: pd.DataFrame, unit: str, neuron: int) -> list[int]:
    """The tokens that taught a neuron, strongest first."""
    return taught.loc[(taught["unit"] == unit) & (taught["group"] == neuron), "token_id"].tolist()
