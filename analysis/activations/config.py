"""Settings of the activation analysis, and the choice of its tokens and neuron.

The user may name tokens and neuron. Otherwise they come from attribution, or, if the run has none,
from token frequencies and mean activations.

Shapes: V token of the vocabulary, K chosen token.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from analysis.activations.quantities import (
    LEVELS,
    QUANTITIES,
    Quantity,
    nouns,
    require_entry,
    units_of,
)
from analysis.activations.scores import By
from analysis.jobs.tables import (
    check_set_name,
    marker_key,
    place_of,
    read_table,
    table_key,
    table_set,
)
from analysis.run.names import token_id
from analysis.run.run import Run
from capture.corpus.datums import UNKNOWN
from capture.errors import ConfigError, UnitError
from capture.parts import KnownModel

ATTRIBUTION = "attribute"
"""Job whose table ``tokens`` lists the tokens of each neuron."""
NUM_TOKENS = 20
"""Default number of tokens."""
NUM_COMPARED = 3
"""Number of a neuron's tokens in the figures."""
NUM_OTHERS = 6
"""Number of frequent words that they are compared with."""
FREQUENT = 200
"""Number of most frequent words that these are drawn from."""

ATTRIBUTED = pa.schema(
    [
        pa.field("level", pa.string()),
        pa.field("unit", pa.string()),
        pa.field("group", pa.int32()),  # the neuron
        pa.field("token_id", pa.int32()),
    ]
)
"""Columns read from attribution's table of tokens; strongest neuron and token first."""


@dataclass(frozen=True, kw_only=True)
class ActivationConfig:
    """Settings of ``ontogeny activations``."""

    tokens: tuple[str, ...] = ()
    """Tokens; by default those of attribution, of the given neuron first and then of the strongest
    neurons (rows, heads), or else the most frequent words."""
    neuron: str | None = None
    """Compared neuron (row, entry or head, by ``quantity``), as UNIT:N; by default the strongest
    attributed one that has one of the tokens, or else the one most active on the first token."""
    quantity: Quantity = "inputs"
    """What is measured (``analysis.activations.quantities``): inputs of MLP units, the neurons;
    outputs, their rows before any nonlinearity; head-entries and head-norm, what heads pass on;
    attention-entropy, -largest, -self, -previous and -distance, where heads attend to."""
    by: By = "target"
    """Whether a token's positions are those that predict it (target) or read it (input)."""
    step: int | None = None
    """Step of the checkpoint; None takes the last one."""
    attribution: str = ""
    """Name of the attribution that chooses tokens and neuron; by default the one without a name."""
    seed: int = 0
    """Seed for drawing the words to compare with, and positions of very frequent tokens."""

    def __post_init__(self) -> None:
        if self.by not in ("target", "input"):
            raise ConfigError("activations.by", f"got {self.by!r}, must be target or input")
        if self.quantity not in QUANTITIES:
            problem = f"got {self.quantity!r}, must be one of {', '.join(QUANTITIES)}"
            raise ConfigError("activations.quantity", problem)
        if self.attribution:
            check_set_name("--attribution", self.attribution)
        if self.neuron is not None and not self.neuron.rpartition(":")[2].isdecimal():
            problem = f"got {self.neuron!r}, must be UNIT:N, as in layers.2.linear2.weight:96"
            raise ConfigError("activations.neuron", problem)

    @property
    def unit_and_column(self) -> tuple[str, int] | None:
        """Unit and column of ``neuron``; None if it is not given."""
        if self.neuron is None:
            return None
        unit, _, column = self.neuron.rpartition(":")
        return unit, int(column)

    @property
    def wants_attribution(self) -> bool:
        return not self.tokens or self.neuron is None


@dataclass(frozen=True)
class ComparisonChoice:
    """The neuron and tokens that the figures compare."""

    unit: str
    neuron: int
    neuron_from: str
    """Origin of the choice: asked, attribution or activation."""
    tokens: tuple[int, ...]
    """Tokens of the neuron, at least one."""
    others: tuple[int, ...]
    """Frequent words drawn at random, to compare with."""


def require_asked(run: Run, config: ActivationConfig) -> None:
    """Raise what ``require_known`` raises for the tokens and the neuron that are asked for."""
    for token in config.tokens:
        token_id(run.tokens, token)
    if config.neuron is not None:
        require_known(run, run.parted(config.step), config)


def require_known(run: Run, model: KnownModel, config: ActivationConfig) -> None:
    """Raise ``UnitError`` or ``ConfigError`` for an unknown neuron or token."""
    if not units_of(model, config.quantity):
        of_mlp = config.quantity in ("inputs", "outputs")
        reason = "they have no MLP" if of_mlp else "no attention heads were found"
        other = "head-norm" if of_mlp else "inputs"
        problem = f"have no {nouns(config.quantity)}, because {reason}"
        raise UnitError("layers.*", problem, f"Choose another --of, such as {other}")
    if config.unit_and_column:
        require_entry(model, *config.unit_and_column, config.quantity)
    for token in config.tokens:
        token_id(run.tokens, token)


def attributed_tokens(run: Run, name: str = "") -> pd.DataFrame | None:
    """Read ``ATTRIBUTED`` of all levels; return None if the run has no attribution.

    ``name``: that of the attribution. Raises ``RunError`` if there is none of this name, or if it
    covers fewer steps than the run has.
    """
    job = table_set(ATTRIBUTION, name)
    keys = marker_key(job), table_key(job, "tokens")
    if not name and not all(map(place_of(run, job).exists, keys)):
        return None
    return read_table(run, job, "tokens", ATTRIBUTED)


def of_level(attributed: pd.DataFrame | None, quantity: Quantity) -> pd.DataFrame | None:
    """Return the tokens attributed to the entries that are measured; None if there are none."""
    if attributed is None:
        return None
    own = attributed[attributed["level"] == LEVELS[quantity]]
    return own if len(own) else None


def choose_tokens(
    names: Sequence[str],
    count_V: np.ndarray,
    config: ActivationConfig,
    attributed: pd.DataFrame | None,
) -> tuple[np.ndarray, str]:
    """Return distinct ids of tokens that have positions, int64 [K], and their origin.

    The origin is asked, attribution or frequency. ``count_V`` holds the number of positions of each
    token. Raises ``ConfigError`` for a given token without positions.
    """
    if config.tokens:
        number = {name: token for token, name in enumerate(names)}
        token_K = np.array(list(dict.fromkeys(number[name] for name in config.tokens)))
        for token in token_K[count_V[token_K] == 0]:
            problem = f"{names[token]!r} does not occur in the training datums as {config.by}"
            raise ConfigError("activations.tokens", problem, "Choose another token")
        return token_K, "asked"
    if attributed is not None:
        neuron = config.unit_and_column
        first = tokens_of(attributed, *neuron) if neuron else []
        token_K = np.array(list(dict.fromkeys([*first, *attributed["token_id"]])), np.int64)
        token_K = token_K[count_V[token_K] > 0][:NUM_TOKENS]
        if len(token_K):
            return token_K, "attribution"
    return frequent_words(names, count_V)[:NUM_TOKENS], "frequency"


def frequent_words(names: Sequence[str], count_V: np.ndarray) -> np.ndarray:
    """Return the tokens that have positions, most frequent first.

    Only tokens with a letter or digit count; if there are none, all tokens do.
    """
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
    attributed: pd.DataFrame | None,
    ranks: pd.DataFrame,
) -> ComparisonChoice:
    """Choose the neuron, its tokens (the given ones, if any), and words to compare with."""
    asked = [int(token) for token in token_K] if config.tokens else []
    unit, neuron, neuron_from = choose_neuron(config, asked, attributed, ranks)
    own = [] if attributed is None else tokens_of(attributed, unit, neuron)
    tokens = asked or [token for token in own if count_V[token]] or token_K.tolist()
    words = frequent_words(names, count_V)[:FREQUENT]
    words = words[~np.isin(words, [*tokens, *own])]
    others = np.random.default_rng(config.seed).permutation(words)[:NUM_OTHERS]
    return ComparisonChoice(
        unit, neuron, neuron_from, tuple(tokens[:NUM_COMPARED]), tuple(others.tolist())
    )


def choose_neuron(
    config: ActivationConfig, asked: list[int], attributed: pd.DataFrame | None, ranks: pd.DataFrame
) -> tuple[str, int, str]:
    """Return unit, column and the origin of the choice: asked, attribution or activation."""
    if config.unit_and_column:
        return *config.unit_and_column, "asked"
    if attributed is not None and asked:
        attributed = attributed[attributed["token_id"].isin(asked)]
    if attributed is not None and len(attributed):
        return str(attributed["unit"].iloc[0]), int(attributed["group"].iloc[0]), "attribution"
    return str(ranks["max_unit"].iloc[0]), int(ranks["max_neuron"].iloc[0]), "activation"


def tokens_of(attributed: pd.DataFrame, unit: str, neuron: int) -> list[int]:
    """Return the tokens that attribution selected for a neuron, strongest first."""
    return attributed.loc[
        (attributed["unit"] == unit) & (attributed["group"] == neuron), "token_id"
    ].tolist()
