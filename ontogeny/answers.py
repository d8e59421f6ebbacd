"""What the public functions share: open the run, answer, and keep the tables if asked to."""

from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from typing import TypeVar

from analysis.jobs.claims import claim
from analysis.jobs.question import Question
from analysis.run.run import Run, open_run
from capture.errors import ConfigError

Found = TypeVar("Found")
Progress = Callable[[int, int], None]
"""Called with what is done and what there is in all (rows, datums or steps)."""


def opened_run(run: Run | str | PathLike[str]) -> Run:
    return run if isinstance(run, Run) else open_run(run)


def report_to(progress: Progress | None) -> Progress:
    """Return the function to call with progress; one that does nothing for None."""
    return progress or (lambda done, wanted: None)


@dataclass(frozen=True)
class Keep:
    """Whether and where the tables of an answer are kept."""

    save: bool
    name: str
    replace: bool

    def __post_init__(self) -> None:
        if (self.name or self.replace) and not self.save:
            given = "name" if self.name else "replace"
            raise ConfigError(given, "is given, but no tables are kept", "Add save=True")

    def answer(
        self,
        run: Run,
        question: Question,
        compute: Callable[[], Found],
        write: Callable[[Run, Found, Question, str], None],
    ) -> Found:
        """Compute, and write the tables with ``save``; raises first what ``claim`` raises."""
        if self.save:
            claim(run, question, self.name, replace=self.replace)
        found = compute()
        if self.save:
            write(run, found, question, self.name)
        return found
