"""Specifications of queries: frozen dataclasses that are plain JSON and build a query for a run."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, get_args

from analysis.influence.queries.material import QueryMaterial
from analysis.influence.queries.query import Better, Part, Query
from analysis.run.stored_run import Split
from capture.errors import ConfigError

SPLITS: tuple[Split, ...] = get_args(Split)
MEASURES = ("log-probability", "loss")


@dataclass(frozen=True, kw_only=True)
class Specification(ABC):
    """What is asked. The fields of a child are its keys in JSON, beside ``kind``."""

    kind: ClassVar[str]
    name: str = ""
    """Name in tables; by default what ``title`` returns."""

    @abstractmethod
    def title(self) -> str:
        """Return a short phrase for people."""

    @abstractmethod
    def build(self, material: QueryMaterial) -> Query:
        """Return the query as a function of the weights of a run's model."""

    def describe(self) -> dict[str, Any]:
        """Return the specification as plain JSON."""
        return {"kind": self.kind, **asdict(self)}

    def query(self, parts: Sequence[Part], better: Better | None) -> Query:
        return Query(self.name or self.title(), self.describe(), parts, better)


def require_measure(field: str, measure: str) -> None:
    """Raise ``ConfigError`` for an unknown measure."""
    if measure not in MEASURES:
        raise ConfigError(field, f"got {measure!r}, wanted {' or '.join(MEASURES)}")


def chosen_split(material: QueryMaterial, split: str) -> Split:
    """Return the split of this name; without a name, the run's held-out text.

    Raises ``ConfigError`` for a name that is no split.
    """
    if not split:
        return material.held_out
    for known in SPLITS:
        if split == known:
            return known
    raise ConfigError("split", f"got {split!r}, wanted {', '.join(SPLITS)}")
