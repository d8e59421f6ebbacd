"""One datum of a run, as ``run.datum`` returns it.

Shapes: T position.
"""

from dataclasses import dataclass
from html import escape

import numpy as np

from analysis.run.datums.picture import Picture
from analysis.run.stored_run import Split, StoredRun
from analysis.run.token_windows import check_tokens
from capture.corpus.config import TASKS
from capture.errors import RunError


@dataclass(frozen=True, eq=False, repr=False)
class Datum:
    """A datum of a run. It prints as its text, or as its picture if it is an image or a maze."""

    number: int
    """Number of the datum in its split."""
    split: Split
    tokens: tuple[str, ...]
    """Input tokens, [T]."""
    targets: tuple[str, ...]
    """Tokens to be predicted, at the last positions of the window; at all of a text's."""
    text: str
    picture: Picture | None

    def __repr__(self) -> str:
        title = f"{self.split} datum {self.number}: {self.text}"
        return title if self.picture is None else f"{title}\n{self.picture.as_text()}"

    def _repr_html_(self) -> str:
        title = f"{self.split} datum {self.number}: {self.text}"
        shown = "" if self.picture is None else self.picture.as_svg(title)
        return f"<figure><figcaption>{escape(title)}</figcaption>{shown}</figure>"


def read_datum(run: StoredRun, number: int, split: Split) -> Datum:
    """Read a datum; raises ``RunError`` for a split or a number that the run lacks."""
    table = run.datum_table(split)
    if not 0 <= number < len(table):
        remedy = f"They are numbered from 0 to {len(table) - 1}"
        raise RunError(run.uri, f"has no {split} datum {number}", remedy)
    row = table.slice(number, 1).to_pylist()[0]
    ids = [*row["tokens"], row["last_target"]]
    check_tokens(np.array(ids), run.corpus_shard("vocab").where, run.num_tokens)
    names = run.vocabulary_table["token"].take(ids).to_pylist()
    own = run.config.corpus
    scored = own.scored or len(ids) - 1
    text = row["text"]
    if own.kind == "modular-addition":
        text = " ".join((names[0], "+", names[1], "=", names[3]))
    picture = Picture.of(own, np.array(ids)) if own.kind in TASKS else None
    return Datum(number, split, tuple(names[:-1]), tuple(names[-scored:]), text, picture)
