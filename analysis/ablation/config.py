"""Settings of ablation, and the choice of subjects, their datums and their notable tokens.

Shapes: N datum of the text, T position.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from analysis.ablation.ablatable import all_subjects, require_subjects
from analysis.ablation.replacement import VALUES, Value
from analysis.ablation.subjects import (
    LEVELS,
    NOUNS,
    Level,
    Subject,
    parse_subjects,
)
from analysis.attribution import tables as attribution_tables
from analysis.jobs.tables import (
    check_set_name,
    command_for,
    read_table,
    require_tables,
    table_key,
    table_set,
)
from analysis.run.run import Run, Split
from capture.errors import ConfigError, RunError, at_least
from capture.parts import KnownModel

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
KEY = ["unit", "group"]
READ = ("groups", "tokens", "datums")
"""Attribution tables that ablation reads."""


@dataclass(frozen=True, kw_only=True)
class AblationConfig:
    """Settings of ``ontogeny ablate``."""

    level: Level = "neuron"
    """Kind of subject: columns of weights (neuron), rows of weights, or attention heads."""
    value: Value = "zero"
    """Replacement: zero weights, the mean over the training text, or a resampled value."""
    only: tuple[str, ...] = ()
    """Subjects to ablate, as UNIT:N[,N…]; by default the attributed ones."""
    everything: bool = False
    """Ablate all heads, or all columns or rows of the MLP units."""
    max_neurons: int = 50
    """Largest number of attributed subjects: those with the most evidence and notable tokens."""
    max_datums: int = 2000
    """Datums per subject: those that moved it most, or a random sample if it has none."""
    scored_datums: int = 200
    """How many of these datums, from the first, get log-probabilities; 0 for none."""
    split: Split = "train"
    """Split that the datums come from; attribution knows only training datums."""
    contexts_per_token: int = 3
    """Contexts stored for every flipped token of a subject."""
    seed: int = 0
    """Seed of the random samples of datums, and of the ``resample`` value."""
    step: int | None = None
    """Number of updates behind the model; by default all committed ones."""
    attribution: str = ""
    """Name of the attribution that chooses tokens and datums; by default the one without a name."""

    def __post_init__(self) -> None:
        for name in ("max_neurons", "max_datums", "contexts_per_token"):
            at_least(f"ablation.{name}", getattr(self, name), 1)
        for name in ("scored_datums", "seed"):
            at_least(f"ablation.{name}", getattr(self, name), 0)
        for name, wanted in (("level", LEVELS), ("value", VALUES), ("split", SPLITS)):
            if (found := getattr(self, name)) not in wanted:
                raise ConfigError(f"ablation.{name}", f"got {found!r}, wanted {', '.join(wanted)}")
        if self.attribution:
            check_set_name("ablation.attribution", self.attribution)
        if self.only and self.everything:
            raise ConfigError("ablation.only", "cannot go with ablation.everything (--all)")


@dataclass(frozen=True, eq=False)
class SubjectChoice:
    """The subjects to ablate, in order, with the tokens and datums of each."""

    subjects: list[Subject]
    notable: list[np.ndarray]
    """For each subject, the ids of the tokens that attribution selected."""
    datums: list[np.ndarray]
    """For each subject, its datums: largest weight first, or a random sample, ascending."""
    attributed: list[bool]
    """For each subject, whether its datums come from attribution, not from a random sample."""


@dataclass(frozen=True, eq=False)
class SplitText:
    """Inputs and targets of all datums of a split, both [N, T]."""

    token_NT: np.ndarray
    target_NT: np.ndarray

    @classmethod
    def of(cls, run: Run, split: Split) -> "SplitText":
        """Read a split; raise ``RunError`` if the run does not have it or it is empty."""
        table = run.datum_table(split)
        if not len(table):
            raise RunError(run.uri, f"has no {split} datums")
        token_NT = np.array(table["tokens"].combine_chunks().flatten()).reshape(len(table), -1)
        last_N1 = table["last_target"].to_numpy()[:, None]
        return cls(token_NT, np.hstack([token_NT[:, 1:], last_N1]))

    @property
    def stream_NT(self) -> np.ndarray:
        """Return each datum's inputs followed by its last target, [N, T + 1]."""
        return np.hstack([self.token_NT, self.target_NT[:, -1:]])


def choose_subjects(
    run: Run, model: KnownModel, num_datums: int, config: AblationConfig
) -> SubjectChoice:
    """Choose subjects and their datums; ``num_datums`` is the number of datums of the split.

    Raises ``RunError`` if the run has no attribution, if its attribution covers fewer steps than
    the run, or if it selected no subject; raises ``ConfigError`` or ``UnitError`` for subjects that
    do not exist.
    """
    require_attribution(run, config.attribution)
    tokens = read_attribution(run, "tokens", ["token_id"], config)
    if config.everything:
        subjects = all_subjects(model, config.level)
    elif config.only:
        subjects = parse_subjects(config.only, config.level)
    else:
        subjects = strongest_subjects(run, tokens, config)
    require_subjects(model, subjects)
    notable = by_subject(tokens, "token_id", subjects)
    own = subject_datums(run, subjects, config)
    rng = np.random.default_rng(config.seed)
    sample = np.sort(rng.permutation(num_datums)[: config.max_datums])
    return SubjectChoice(
        subjects,
        notable,
        [datums if len(datums) else sample for datums in own],
        [len(datums) > 0 for datums in own],
    )


def require_asked(run: Run, config: AblationConfig) -> None:
    """Raise what ``choose_subjects`` raises for the attribution and the subjects asked for."""
    require_attribution(run, config.attribution)
    if config.only:
        require_subjects(run.parted(config.step), parse_subjects(config.only, config.level))


def require_attribution(run: Run, name: str) -> None:
    """Raise ``RunError`` unless the attribution of this name has all tables that ablation reads."""
    job = table_set(attribution_tables.JOB, name)
    marker = require_tables(run, job)
    if not {file.key for file in marker.files} >= {table_key(job, name) for name in READ}:
        problem = f"has tables of {job} that an older version made"
        raise RunError(run.uri, problem, f"Run: {command_for(run, job)}")


def strongest_subjects(run: Run, tokens: pd.DataFrame, config: AblationConfig) -> list[Subject]:
    """Return the groups of the level that have notable tokens, most evidence first."""
    groups = read_attribution(run, "groups", [], config)
    named = groups.merge(tokens[KEY].drop_duplicates(), on=KEY)
    if named.empty:
        noun, command = NOUNS[config.level].removesuffix("s"), f"ontogeny {attribution_tables.JOB}"
        remedy = f"Run: {command} {run.uri} --level {config.level}, or choose: --only, --all"
        if len(groups):
            remedy = f"Attribute with lower thresholds: {command} {run.uri} …"
        raise RunError(run.uri, f"has an attribution without tokens for any {noun}", remedy)
    named = named.iloc[: config.max_neurons]
    return [Subject(*key, config.level) for key in zip(named["unit"], named["group"], strict=True)]


def subject_datums(run: Run, subjects: list[Subject], config: AblationConfig) -> list[np.ndarray]:
    """Return the attributed datums of each subject, largest weight first.

    All lists are empty if the split is not ``train``.
    """
    if config.split != "train":
        return [np.empty(0, np.int32)] * len(subjects)
    wanted = {
        "unit": sorted({subject.unit for subject in subjects}),
        "group": sorted({subject.group for subject in subjects}),
    }
    table = read_attribution(run, "datums", ["datum"], config, wanted)
    return [own[: config.max_datums] for own in by_subject(table, "datum", subjects)]


def read_attribution(
    run: Run,
    name: str,
    columns: list[str],
    config: AblationConfig,
    wanted: dict[str, list] | None = None,
) -> pd.DataFrame:
    """Read unit, group and ``columns`` of the level from a table of the attribution.

    ``wanted`` limits the rows further: column → accepted values.
    """
    schema = attribution_tables.TABLES[name]
    schema = pa.schema([schema.field(column) for column in ("level", *KEY, *columns)])
    wanted = {"level": [config.level], **(wanted or {})}
    job = table_set(attribution_tables.JOB, config.attribution)
    table = read_table(run, job, name, schema, wanted)
    return table.drop(columns="level")


def by_subject(table: pd.DataFrame, column: str, subjects: list[Subject]) -> list[np.ndarray]:
    """Return a column's values for each subject, in the table's order; maybe none."""
    groups = table.groupby(KEY, observed=True, sort=False).indices
    values = table[column].to_numpy()
    no_rows = np.empty(0, np.intp)
    return [values[groups.get((subject.unit, subject.group), no_rows)] for subject in subjects]
