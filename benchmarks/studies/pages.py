"""Fills the blocks of a page: lines between ``<!-- NAME -->`` and ``<!-- /NAME -->``.

All figures of a page stand in its blocks, so none is typed by hand.
"""

import re

from benchmarks.studies.study import Blocks

BLOCK = re.compile(r"<!-- (?P<name>[a-z-]+) -->\n(?P<inside>.*?)<!-- /(?P=name) -->", re.DOTALL)


def filled(page: str, blocks: Blocks) -> str:
    """Return a page with these blocks; raises ``ValueError`` if page and blocks differ in names."""
    there = [found["name"] for found in BLOCK.finditer(page)]
    if sorted(there) != sorted(blocks):
        raise ValueError(f"the page has blocks {sorted(there)}, the study makes {sorted(blocks)}")

    def block(found: re.Match[str]) -> str:
        name = found["name"]
        return "\n".join([f"<!-- {name} -->", "", *blocks[name], "", f"<!-- /{name} -->"])

    return BLOCK.sub(block, page)


def prose(page: str) -> str:
    """Return a page without the insides of its blocks."""
    return BLOCK.sub("", page)
