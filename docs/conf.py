"""Sphinx: Markdown by MyST, the theme furo, references generated from the code. ``make docs``.

Sphinx and not mkdocs-material, because autodoc reads the docstrings under dataclass fields and
sphinx-argparse the parser of the command line, so that both references come from the code alone;
and because mkdocs-material is in maintenance only. Nothing is fetched when the pages are read.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from capture import __version__  # noqa: E402

project = "Ontogeny"
author = "The Ontogeny authors"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinxarg.ext"]
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
