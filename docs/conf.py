"""Sphinx: Markdown by MyST, the theme furo, references generated from the code. ``make docs``.

Sphinx and not mkdocs-material, because autodoc reads the docstrings under dataclass fields, so that
the references of the configuration and of the Python API come from the code alone.
Nothing is fetched when the pages are read.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["COLUMNS"] = "88"  # how wide help is wrapped

from docutils import nodes  # noqa: E402
from docutils.parsers.rst import Directive  # noqa: E402

from capture import __version__  # noqa: E402
from cluster.cli import parser  # noqa: E402

project = "Ontogeny"
author = "The Ontogeny authors"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"Ontogeny {__version__}"
html_show_copyright = False

myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_maximum_signature_line_length = 88
napoleon_use_rtype = False


class CommandHelp(Directive):
    """The help of the command line and of each command, as the terminal prints it."""

    def run(self) -> list[nodes.Node]:
        top = parser()
        made = [nodes.literal_block(text=top.format_help())]
        (commands,) = (x for x in top._actions if isinstance(x, argparse._SubParsersAction))
        for name, command in commands.choices.items():
            section = nodes.section(ids=[name])
            section += nodes.title(text=f"ontogeny {name}")
            section += nodes.literal_block(text=command.format_help())
            made.append(section)
        return made


def escape_bars(
    app: object, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Keep |x| an absolute value: reStructuredText takes it for a substitution."""
    lines[:] = [line.replace("|", "\\|") for line in lines]


def setup(app: Any) -> None:
    app.add_directive("command-help", CommandHelp)
    app.connect("autodoc-process-docstring", escape_bars)
