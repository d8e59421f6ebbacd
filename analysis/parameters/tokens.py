"""The tokens of the datums that have one parameter among their outliers.

This is the study's question about a parameter, asked by name: its Table 2 sorts the tokens by
relative frequency, its Table 3 by count, and its heuristic chooses between them. A row of the
outlier record counts for all tokens of its datum, so a datum counts once for each of its rows.

Rare tokens have high relative frequencies by chance. So the same number of rows is also dealt to
datums drawn at random, 100 times; the answer says which relative frequency that reaches.

Shapes: N datum, M outlier row, S site (a datum, or a position of one), K site with rows, U token of
a site, V token of the vocabulary.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from analysis.jobs.question import Question
from analysis.jobs.tables import concat_frames, table_set, write_tables
from analysis.lifetime.run import lifetime_run, require_positions
from analysis.measures.selection import choose
from analysis.parameters.config import ParameterConfig
from analysis.parameters.tables import ABOUT, JOB, TABLES, TOKENS, ParameterTokens
from analysis.run.datums.recorded_steps import recorded_datums
from analysis.run.run import Run
from analysis.run.scan import read_all
from capture.errors import RunError
from capture.shards.schema import OUTLIERS

DRAWS = 100
"""Number of random draws."""
LEVEL = 0.95
"""Share of the draws that stay at or below ``chance``."""
WHICH = pa.schema([OUTLIERS.field(name) for name in ("step", "unit", "index")])
"""Columns of the outlier record that the rows of a unit are counted by."""


@dataclass(frozen=True, eq=False)
class Sites:
    """What the rows of a run can count for: datums, or positions of datums."""

    token_SU: np.ndarray
    """Tokens of each site; the sites of a datum stand side by side."""
    trained_S: np.ndarray
    """Whether the site's datum was trained on in the steps, and the site has a token, bool."""
    train_V: np.ndarray
    """Occurrences of each token in these sites, float64; 0 for padding."""
    by_position: bool
    """Whether a site is a position, not a whole datum."""

    @classmethod
    def of(cls, run: Run, config: ParameterConfig, steps: range) -> "Sites":
        token_NT = run.target_NT if config.evidence == "target" else run.token_NT
        by_position = config.evidence != "window"
        token_SU = token_NT.reshape(-1, 1) if by_position else token_NT
        trained_S = np.repeat(datums_of_steps(run, steps), len(token_SU) // len(token_NT))
        train_V = np.bincount(token_SU[trained_S].ravel(), minlength=run.num_tokens)
        if run.length_N is not None:  # the last token of the vocabulary is padding
            trained_S &= (token_SU != run.num_tokens - 1).any(1)
            train_V[-1] = 0
        return cls(token_SU, trained_S, train_V.astype(float), by_position)

    def rows_at(self, rows: pd.DataFrame, window: int) -> np.ndarray:
        """Return the number of these rows at each site, float64 [S]."""
        site_M = rows["datum_id"].to_numpy(np.int64)
        if self.by_position:
            site_M = site_M * window + rows["position"].to_numpy()
        return np.bincount(site_M, minlength=len(self.token_SU)).astype(float)


def parameter_tokens(run: Run, config: ParameterConfig) -> ParameterTokens:
    """Rank the tokens of the datums that have the parameter among their outliers.

    Raises ``UnitError`` for a parameter that was not captured, ``RunError`` if it has no outliers
    in these steps or the run lacks the steps; with ``config.lifetime`` also what ``lifetime_run``
    raises.
    """
    if config.lifetime:
        run = lifetime_run(run)
        if config.evidence != "window" and len(run.layout.shapes.get(config.unit, ())) != 2:
            require_positions(run)
    end = run.steps_done if config.end_step is None else config.end_step
    steps = range(config.first_step, end)
    rows = rows_of(run, config, steps)
    sites = Sites.of(run, config, steps)
    rows_S = sites.rows_at(rows, run.token_NT.shape[1])
    count_V = count_tokens(sites.token_SU, rows_S, sites.train_V)
    tokens = token_frame(run, count_V, sites.train_V)
    chosen_V = np.full(run.num_tokens, -1)
    chosen = chosen_tokens(rows_S, count_V, sites, config)
    chosen_V[chosen] = np.arange(len(chosen))
    least = config.selection.min_count
    token_SU = sites.token_SU[sites.trained_S]
    chance = chance_of(rows_S[rows_S > 0], token_SU, sites.train_V, least, config.seed)
    beyond = (tokens["count"] >= least) & (tokens["relative_frequency"] > chance)
    tokens = tokens.assign(chosen_rank=chosen_V[tokens["token_id"]], beyond_chance=beyond)
    about = about_frame(run, rows, config)
    about = about.assign(tokens=int(count_V.sum()), least_count=least, chance=chance)
    return ParameterTokens(concat_frames([tokens], TOKENS), concat_frames([about], ABOUT))


def write_parameter(
    run: Run, found: ParameterTokens, question: Question | None = None, name: str = ""
) -> None:
    """Write the tables to ``run.tables``, as the set with this name."""
    write_tables(run, table_set(JOB, name), vars(found), TABLES, question)


# --- counts ---------------------------------------------------------------------------------------


def rows_of(run: Run, config: ParameterConfig, steps: range) -> pd.DataFrame:
    """Return the parameter's outliers in these steps, without those at padding.

    Raises what ``parameter_tokens`` raises.
    """
    rows = run.shifts(unit=config.unit, index=config.index, steps=steps)
    if run.length_N is not None:
        rows = rows[rows["position"] < run.length_N[rows["datum_id"]]]
    if not len(rows):
        problem = f"has no recorded outliers in steps {steps.start} to {steps.stop - 1}"
        remedy = most_outliers(run, config.unit, steps)
        raise RunError(f"{config.unit}:{config.index}", problem, remedy)
    return rows


def most_outliers(run: Run, unit: str, steps: range) -> str:
    """Return a hint that names the parameter of a unit with the most outliers."""
    table = read_all(run.shards("outliers", steps), WHICH, {"unit": [unit], "step": steps})
    if not len(table):
        return "The whole unit has none; capture.outliers.scope=unit gives every unit its share"
    rows_P = np.bincount(table["index"].to_numpy())
    return f"The one with the most in this unit is {rows_P.argmax()}, with {rows_P.max():,}"


def datums_of_steps(run: Run, steps: range) -> np.ndarray:
    """Return whether each datum was trained on in those of these steps with outliers, bool [N]."""
    seen_N = np.zeros(run.num_datums, bool)
    seen_N[recorded_datums(run, "outliers", steps)] = True
    return seen_N


def count_tokens(token_SU: np.ndarray, weight_S: np.ndarray, train_V: np.ndarray) -> np.ndarray:
    """Return the occurrences of each token, each site counted ``weight_S`` times, [V].

    Tokens that the training text lacks (padding) count 0.
    """
    weight_SU = np.broadcast_to(weight_S[:, None], token_SU.shape)
    count_V = np.bincount(token_SU.ravel(), weight_SU.ravel(), len(train_V))
    return np.where(train_V > 0, count_V, 0)


def chosen_tokens(
    rows_S: np.ndarray, count_V: np.ndarray, sites: Sites, config: ParameterConfig
) -> np.ndarray:
    """Return the tokens that ``config.select`` chooses, strongest first.

    Other methods than the study's test Kish's effective number of observations: rows of one site
    depend on each other.
    """
    each = count_V.sum() / rows_S.sum()
    effective = rows_S.sum() ** 2 / (rows_S**2).sum() * each
    observed_G = None if config.select == "study" else np.array([effective])
    found = choose(config.select, count_V[None], sites.train_V, config.selection, observed_G)
    return found["token_id"].to_numpy()


def chance_of(
    rows_K: np.ndarray, token_SU: np.ndarray, train_V: np.ndarray, least: int, seed: int
) -> float:
    """Return the relative frequency that tokens reach if the rows belong to random sites.

    In each draw, the numbers of rows are dealt to other sites. The result is the 95 % quantile,
    over draws, of the highest relative frequency of a token with at least ``least`` occurrences;
    0 if no draw has such a token.
    """
    rng, highest = np.random.default_rng(seed), []
    share_V = train_V / train_V.sum()
    for _ in range(DRAWS):
        site_K = rng.choice(len(token_SU), len(rows_K), replace=False)
        count_V = count_tokens(token_SU[site_K], rows_K, train_V)
        often_V = count_V >= least
        ratio = count_V[often_V] / count_V.sum() / share_V[often_V]
        highest.append(ratio.max(initial=0))
    return float(np.quantile(highest, LEVEL, method="higher"))


# --- frames ---------------------------------------------------------------------------------------


def token_frame(run: Run, count_V: np.ndarray, train_V: np.ndarray) -> pd.DataFrame:
    """Return ``TOKENS`` without its last two columns; ties go to the lowest id."""
    token_U = np.flatnonzero(count_V)
    count_U, frequency_U = count_V[token_U], count_V[token_U] / count_V.sum()
    train_U = train_V[token_U] / train_V.sum()
    relative_U = frequency_U / train_U
    frame = pd.DataFrame(
        {
            "token_id": token_U,
            "token": np.array(run.tokens, object)[token_U],
            "count": count_U.astype(np.int64),
            "frequency": frequency_U,
            "train_frequency": train_U,
            "relative_frequency": relative_U,
            "frequency_rank": ranks(-relative_U, -count_U),
            "count_rank": ranks(-count_U, -relative_U),
        }
    )
    return frame.sort_values("frequency_rank", ignore_index=True)


def ranks(*keys: np.ndarray) -> np.ndarray:
    """Return the rank of each entry by ascending keys, the most important first, from 0."""
    order = np.lexsort((np.arange(len(keys[0])), *reversed(keys)))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return rank


def about_frame(run: Run, rows: pd.DataFrame, config: ParameterConfig) -> pd.DataFrame:
    """Return what ``ABOUT`` says of the parameter and its rows."""
    shape = run.layout.shapes[config.unit]
    row, column = divmod(config.index, shape[1]) if len(shape) == 2 else (-1, -1)
    shift_M, step_M = rows["diff"].to_numpy(np.float64), rows["step"]
    return pd.DataFrame(
        {
            **{name: [getattr(config, name)] for name in ("unit", "index", "evidence")},
            **{"row": row, "column": column, "rows": len(rows)},
            "datums": rows["datum_id"].nunique(),
            **{"first_step": step_M.min(), "last_step": step_M.max()},
            "up": (shift_M > 0).mean(),
            **{"shift": shift_M.sum(), "largest": np.abs(shift_M).max()},
        }
    )
