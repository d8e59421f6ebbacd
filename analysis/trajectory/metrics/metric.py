"""What a metric is: a function from model and text to rows, what these mean, what it needs."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from analysis.trajectory.metrics.row import Row
from analysis.trajectory.observed.model import Observed, Part
from analysis.trajectory.observed.text import Text

Need = (
    Part
    | Literal["held-out text", "training text", "repeated tokens", "windows of 20 tokens"]
    | Literal["prompts with completions (--concept)", "texts with labels (--concept)"]
    | Literal["modular addition", "sentences with dependencies (--dependencies)"]
    | Literal["64 pairs of components at most (--paths)"]
)
Function = Callable[[Observed, Text], Iterable[Row]]


@dataclass(frozen=True)
class Described:
    """One name that rows carry."""

    name: str
    unit: str
    meaning: str
    null: str = ""


@dataclass(frozen=True)
class Metric:
    """A function that measures one or several named metrics."""

    function: Function
    gives: tuple[Described, ...]
    needs: frozenset[Need] = frozenset()
    asked: bool = False
    """Whether it is measured only if it is named, because it takes long."""
    own: bool = False
    """Whether it is the user's own; the names of its rows are then known from the rows alone."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(each.name for each in self.gives)
