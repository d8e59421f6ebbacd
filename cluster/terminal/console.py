"""The console of the command line: rich's, which never passes on control characters."""

import os
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from cluster.terminal.plain import printable

WIDTH_OF_PIPES = 110
"""Columns where the output is no terminal and COLUMNS does not say otherwise."""


class SafeConsole(Console):
    """Shows control characters of text as escapes, and leaves failures of the stream to callers.

    Runs, file names and tokens may come from strangers; a control character in them could clear
    the screen, change the title or fill the clipboard.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        # Before rich measures the text, so that tables keep their shape.
        return super().render_str(printable(text), **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        # Text that did not pass render_str (progress columns). Control segments are rich's own.
        for segment in super().render(renderable, options):
            text, style, control = segment
            yield segment if control else Segment(printable(text), style)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def make_console(*, stderr: bool = False) -> SafeConsole:
    """Return the console of a command, as wide as the terminal, COLUMNS, or 110 for pipes."""
    stream = sys.stderr if stderr else sys.stdout
    chosen = os.environ.get("COLUMNS", "").isdigit() or stream.isatty()
    width = None if chosen else WIDTH_OF_PIPES
    return SafeConsole(width=width, stderr=stderr, highlight=False, emoji=False)
