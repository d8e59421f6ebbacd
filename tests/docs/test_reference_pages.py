"""The reference pages name everything that is public, and nothing that is not."""

import re

import pytest
from checkout import ROOT

import ontogeny
from capture.config.settings import Config

DOCS = ROOT / "docs"


def test_every_public_name_is_on_the_page() -> None:
    pages = [(DOCS / "reference" / f"{name}.md").read_text() for name in ("api", "configuration")]
    shown = set(re.findall(r"auto\w+:: ontogeny\.(\w+)", "\n".join(pages)))
    assert shown == set(ontogeny.__all__) - {"__version__"}


def test_every_group_of_settings_is_on_the_page() -> None:
    page = (DOCS / "reference" / "configuration.md").read_text()
    shown = set(re.findall(r"autoclass:: [\w.]+\.(\w+)", page))
    groups, waiting = set(), [Config]
    while waiting:
        group = waiting.pop()
        groups.add(group.__name__)
        hints = [field.default_factory for field in group.__dataclass_fields__.values()]
        waiting += [hint for hint in hints if hasattr(hint, "__dataclass_fields__")]
    assert len(groups) > 8
    assert groups <= shown


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.name)
def test_every_page_is_in_the_table_of_contents(page) -> None:
    name = page.relative_to(DOCS).with_suffix("").as_posix()
    assert name == "index" or f"\n{name}\n" in (DOCS / "index.md").read_text()
