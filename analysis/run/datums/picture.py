"""Pictures of datums: an image in grey levels, or a maze with the path of the mouse.

As text, a cell is two characters wide, so that it is about square in a terminal. As SVG, a cell is
a square of 1 unit, and the picture grows with the page.

Shapes: R row, C column, P visited cell.
"""

from dataclasses import dataclass
from html import escape

import numpy as np

from capture.corpus.config import CorpusConfig
from capture.corpus.tasks.images import DIGITS_LEVELS, MNIST_LEVELS
from capture.corpus.tasks.maze import CELLS, CHEESE, FLOOR, STAR, WALL

SHADES = " ░▒▓█"
MARKS = {WALL: "██", FLOOR: "  ", STAR: "★ ", CHEESE: "◆ "}
START, VISITED = "○ ", "· "
COLOURS = {WALL: "#444", FLOOR: "#fff", STAR: "#e0a000", CHEESE: "#d03020"}
PATH_COLOUR = "#2060c0"
CELL_PIXELS = 12
"""Size of a cell on a page."""


@dataclass(frozen=True, eq=False)
class Picture:
    """The picture of a datum."""

    cell_RC: np.ndarray
    """Grey level of an image's pixel, 0 to 1; kind of a maze's cell."""
    path_P: np.ndarray | None = None
    """Cells that the mouse visits, by number; None for an image."""

    @classmethod
    def of(cls, config: CorpusConfig, token_M: np.ndarray) -> "Picture | None":
        """Return the picture of a datum's tokens and last target; None if it is no picture.

        A damaged datum, with tokens that its task cannot have, has none either.
        """
        if config.picture is None or len(token_M) != config.window + 1:
            return None
        rows, columns = config.picture
        cell_RC = token_M[: rows * columns].reshape(rows, columns)
        if config.kind == "maze":
            path_P = token_M[rows * columns :] - len(CELLS)
            known = cell_RC.max() < len(CELLS) and 0 <= path_P.min() <= path_P.max() < cell_RC.size
            return cls(cell_RC, path_P) if known else None
        levels = DIGITS_LEVELS if config.kind == "digits" else MNIST_LEVELS
        return cls(cell_RC / (levels - 1)) if cell_RC.max() < levels else None

    def as_text(self) -> str:
        """Return one line for each row, of block characters."""
        if self.path_P is None:
            shade_RC = np.ceil(self.cell_RC * (len(SHADES) - 1)).astype(int)
            return "\n".join("".join(SHADES[s] * 2 for s in row_C) for row_C in shade_RC)
        marks = [MARKS[int(cell)] for cell in self.cell_RC.ravel()]
        for at in self.path_P.tolist():
            marks[at] = VISITED if marks[at] == MARKS[FLOOR] else marks[at]
        marks[int(self.path_P[0])] = START
        columns = self.cell_RC.shape[1]
        return "\n".join(
            "".join(marks[start : start + columns]) for start in range(0, len(marks), columns)
        )

    def as_svg(self, label: str) -> str:
        """Return an SVG element; ``label`` says to a screen reader what it shows."""
        rows, columns = self.cell_RC.shape
        size = f'width="{columns * CELL_PIXELS}" height="{rows * CELL_PIXELS}"'
        cells = "".join(
            f'<rect x="{c}" y="{r}" width="1" height="1" fill="{self.colour(self.cell_RC[r, c])}"/>'
            for r in range(rows)
            for c in range(columns)
        )
        return (
            f'<svg viewBox="0 0 {columns} {rows}" {size} role="img" aria-label="{escape(label)}" '
            f'shape-rendering="crispEdges">{cells}{self.path_line()}</svg>'
        )

    def colour(self, cell: float) -> str:
        """Return the colour of a cell: ink on white for an image."""
        if self.path_P is not None:
            return COLOURS[int(cell)]
        grey = round(255 * (1 - float(cell)))
        return f"#{grey:02x}{grey:02x}{grey:02x}"

    def path_line(self) -> str:
        """Return the path as a line with a dot at its start; empty for an image."""
        if self.path_P is None:
            return ""
        row_P, column_P = np.divmod(self.path_P, self.cell_RC.shape[1])
        places = [f"{c + 0.5},{r + 0.5}" for r, c in zip(row_P, column_P, strict=True)]
        x, y = places[0].split(",")
        return (
            f'<polyline points="{" ".join(places)}" fill="none" stroke="{PATH_COLOUR}" '
            f'stroke-width="0.2"/><circle cx="{x}" cy="{y}" r="0.3" fill="{PATH_COLOUR}"/>'
        )
