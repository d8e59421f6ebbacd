"""Measured effects of ablating neurons on each token: the ground truth for attribution methods.

Shapes: S neuron, V token of the vocabulary, W ranked token, N datum, T position.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from analysis.ablation.config import SplitText
from analysis.ablation.log_probability import TokenChanges, log_probability_changes
from analysis.ablation.subjects import Subject
from analysis.jobs.sweep import Sweep, in_turn
from analysis.levels import groups_at
from analysis.run.ablatable import held_out_splits
from analysis.run.run import Run, Split
from capture.errors import ConfigError, RunError, at_least

SIGMAS = 1.645
"""Number of standard errors between a mean and its one-sided 95 % bound."""
MIN_TOKENS = 10
"""Smallest number of ranked tokens for a meaningful evaluation."""
Report = Callable[[int, int], None]
"""Called from time to time with the amount done and the total."""


@dataclass(frozen=True, kw_only=True)
class FaithfulnessConfig:
    """Settings of the ground truth and of the evaluation."""

    neurons: int = 16
    """Number of neurons drawn at random from every unit."""
    text: Literal["held-out", "train"] = "held-out"
    """Text for measuring ablation effects: text that the model never saw, or training text."""
    affected: float = 0.05
    """Share of the ranked tokens that count as affected."""
    min_count: int = 10
    """A token is ranked if it is the target at this many positions or more."""
    step: int | None = None
    """Number of updates behind the model, and of the steps whose record is evidence; by default all
    committed ones."""
    max_datums: int = 2000
    """Largest number of datums of the text, drawn at random if it has more."""
    first: int = 5
    """Number of tokens of highest score that precision is computed on."""
    resamples: int = 1000
    """Number of bootstrap resamples of neurons, for intervals."""
    seed: int = 0
    """Seed for drawing neurons, the halves of the text, and resamples."""

    def __post_init__(self) -> None:
        for name in ("neurons", "min_count", "max_datums", "first", "resamples"):
            at_least(f"faithfulness.{name}", getattr(self, name), 1)
        at_least("faithfulness.seed", self.seed, 0)
        if self.step is not None:  # before the first step there is no evidence
            at_least("faithfulness.step", self.step, 1)
        if not 0 < self.affected <= 0.5:
            problem = f"got {self.affected}, must be above 0 and at most 0.5"
            raise ConfigError("faithfulness.affected", problem)
        if self.text not in ("held-out", "train"):
            problem = f"got {self.text}, must be held-out or train"
            raise ConfigError("faithfulness.text", problem)


@dataclass(frozen=True, eq=False)
class AblationEffects:
    """Log-probability changes under ablation, on each half of the text."""

    first: TokenChanges
    second: TokenChanges
    token_W: np.ndarray
    """Ids of the ranked tokens."""

    @property
    def whole(self) -> TokenChanges:
        return TokenChanges(*(a + b for a, b in zip(self.first, self.second, strict=True)))

    def effect_sizes(self, changes: TokenChanges) -> np.ndarray:
        """Return a lower bound on the size of each ranked token's mean change, nats, [S, W].

        The bound is |mean| − ``SIGMAS`` standard errors (95 %, one-sided), and 0 if that is
        negative or rests on fewer than two positions.
        """
        # Var = (Σ x² − (Σ x)² / n) / (n − 1), from the two sums that the changes hold.
        change_SW, square_SW = (sums[:, self.token_W] for sums in changes[:2])
        count_W = changes.count_V[self.token_W]
        mean_SW = change_SW / np.maximum(count_W, 1)
        variance_SW = np.maximum(square_SW - change_SW * mean_SW, 0) / np.maximum(count_W - 1, 1)
        error_SW = np.sqrt(variance_SW / np.maximum(count_W, 1))
        return np.where(count_W > 1, np.maximum(np.abs(mean_SW) - SIGMAS * error_SW, 0), 0)


def draw_neurons(run: Run, config: FaithfulnessConfig) -> list[Subject]:
    """Draw some neurons of every MLP unit; return them in ascending order."""
    groups = groups_at("neuron", run.layout, heads=1)
    units, rng = np.array(groups.units), np.random.default_rng(config.seed)
    drawn = []
    for unit in dict.fromkeys(groups.units):
        number_I = groups.number_G[units == unit]
        some = rng.choice(number_I, min(config.neurons, len(number_I)), replace=False)
        drawn += [Subject(unit, int(number)) for number in np.sort(some)]
    return drawn


def evaluation_text(run: Run, config: FaithfulnessConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens and targets of the evaluation text, both [N, T], in random order.

    Raises ``RunError`` if held-out text is wanted and the run has none.
    """
    rng = np.random.default_rng(config.seed)
    held_out = held_out_splits(run)
    if config.text == "train":
        text_NT = run.token_NT, run.target_NT
    elif held_out:
        text_NT = split_texts(run, held_out)
    else:
        problem = "holds no held-out text to evaluate on"
        remedy = "Evaluate on training text (--text train)"
        remedy += "" if run.from_custom_loop else ", or capture with corpus.validation_share"
        raise RunError(run.uri, problem, remedy)
    num_datums = min(len(text_NT[0]), config.max_datums)
    drawn_N = rng.choice(len(text_NT[0]), num_datums, replace=False)
    return text_NT[0][drawn_N], text_NT[1][drawn_N]


def split_texts(run: Run, splits: Sequence[Split]) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens and targets of some splits together, both [N, T]."""
    texts = [SplitText.of(run, split) for split in splits]
    return np.vstack([t.token_NT for t in texts]), np.vstack([t.target_NT for t in texts])


def measure_effects(
    run: Run,
    subjects: Sequence[Subject],
    config: FaithfulnessConfig,
    report: Report | None,
    sweep: Sweep = in_turn,
) -> AblationEffects:
    """Ablate every neuron on both halves of the text.

    ``report`` is called with the number of (neuron, datum) pairs done and their total. Raises
    ``RunError`` if the text is missing or too small for ``MIN_TOKENS`` tokens to be ranked.
    """
    token_NT, target_NT = evaluation_text(run, config)
    model, num_datums = run.parted(config.step), len(token_NT)
    halves = []
    for own in (range(num_datums // 2), range(num_datums // 2, num_datums)):

        def forward(done: int, of: int, before: int = own.start * len(subjects)) -> None:
            if report:
                report(before + done, num_datums * len(subjects))

        text = token_NT[own], target_NT[own]
        options = {"num_tokens": run.num_tokens, "report": forward, "sweep": sweep}
        halves.append(log_probability_changes(model, *text, subjects, **options))
    first, second = halves
    token_W = ranked_tokens(first.count_V + second.count_V, config, run.uri)
    return AblationEffects(first, second, token_W)


def ranked_tokens(count_V: np.ndarray, config: FaithfulnessConfig, uri: str) -> np.ndarray:
    """Return the ids of the tokens that are the target at enough positions, ascending.

    ``count_V``: positions of the text by target. Raises ``RunError`` for fewer than ``MIN_TOKENS``.
    """
    token_W, kinds = np.flatnonzero(count_V >= config.min_count), np.count_nonzero(count_V)
    if len(token_W) >= MIN_TOKENS:
        return token_W
    if kinds < MIN_TOKENS:
        problem = f"has too few kinds of tokens to rank: {kinds} are a target in the text, and "
        remedy = "Evaluate on more datums (--datums), or a run with a larger vocabulary"
    else:
        problem = f"has too little text: {len(token_W)} tokens are each the target of at least "
        problem += f"{config.min_count} positions, and "
        remedy = "Lower --min-count, or raise --datums, or hold out more text"
    raise RunError(uri, f"{problem}{MIN_TOKENS} are needed", remedy)
