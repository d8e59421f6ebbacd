"""HTML and SVG as values: elements, formatted numbers, tables.

Corpus text may hold anything, ``<script>`` included. Markup is therefore built in one way only:
``element`` and ``fragment`` escape every child and attribute that is not already ``Markup``.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

VOID_ELEMENTS = {"meta", "link", "input", "br"}
"""Elements of HTML without content and closing tag."""
MISSING = "–"
"""Text of an unknown number."""


def element(name: str, *children: object, **attributes: object) -> Markup:
    """``<name attributes>children</name>``; children and attributes that are None are left out.

    Of an attribute's name a trailing underscore is dropped and inner ones become hyphens:
    ``class_`` → ``class``, ``aria_label`` → ``aria-label``. True gives an attribute without a
    value; False leaves the attribute out.
    """
    parts = [f"<{name}"]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        attribute = key.rstrip("_").replace("_", "-")
        parts.append(f" {attribute}" if value is True else f' {attribute}="{escape(value)}"')
    parts.append(">")
    if name not in VOID_ELEMENTS:
        parts += [escape(child) for child in children if child is not None]
        parts.append(f"</{name}>")
    return Markup("".join(parts))


def fragment(*parts: object, separator: str = "") -> Markup:
    """Concatenate parts, each escaped unless it is ``Markup``; None is left out."""
    return escape(separator).join(escape(part) for part in parts if part is not None)


# --- numbers --------------------------------------------------------------------------------------


def integer(value: float) -> str:
    """Format 1234567 as 1,234,567, and NaN as ``MISSING``."""
    return MISSING if math.isnan(value) else f"{round(value):,}"


def decimals(value: float, places: int = 2) -> str:
    """Format a number with a fixed number of decimals and a typographic minus sign."""
    if math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:,.{places}f}".replace("-", "−")


def significant(value: float, digits: int = 3) -> str:
    """Format a number to some significant digits, with an exponent only where it is shorter."""
    if not math.isfinite(value) or value == 0:
        return decimals(value, 0)
    magnitude = math.floor(math.log10(abs(value)))
    if -4 <= magnitude < 7:
        return decimals(value, max(0, digits - 1 - magnitude))
    return f"{value:.{digits - 1}e}".replace("-", "−")


def percent(share: float, places: int = 0) -> str:
    """Format a share (0 to 1) as a percentage."""
    return MISSING if math.isnan(share) else f"{decimals(100 * share, places)} %"


def interval(low: float, high: float, show: Callable[[float], str]) -> str:
    """Format an interval as "low to high"; "" if a bound is not finite."""
    return f"{show(low)} to {show(high)}" if math.isfinite(low + high) else ""


def probability(value: float) -> str:
    """Format a probability to three decimals."""
    return "< 0.001" if value < 0.001 else decimals(value, 3)


# --- tables ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    header: str
    cell: Callable[[Any], object]
    """The content of the column's cell for a row."""
    meaning: str
    """What the cells hold, with the unit: shown over the header and below the table."""
    numeric: bool = False
    """Right-aligned, and sorted by the first number in the cell."""


def data_table(
    caption: str, columns: Sequence[Column], rows: Iterable[object], *, identity: str | None = None
) -> Markup:
    """A table that scrolls in its own box, and below it what its columns mean.

    The page's script makes the columns sortable.
    """
    headers = [
        element(
            "th",
            column.header,
            scope="col",
            class_="n" if column.numeric else None,
            title=column.meaning,
        )
        for column in columns
    ]
    # Cells are the bulk of a report: they are put together here, without a call of ``element``.
    opening = ['<td class="n">' if column.numeric else "<td>" for column in columns]
    body = [
        Markup(
            "<tr>"
            + "".join(
                f"{start}{escape(column.cell(row))}</td>"
                for start, column in zip(opening, columns, strict=True)
            )
            + "</tr>"
        )
        for row in rows
    ]
    table = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *headers)),
        element("tbody", *body),
        class_="sortable",
        id=identity,
    )
    box = element("div", table, class_="scroll", role="region", tabindex="0", aria_label=caption)
    return fragment(box, glossary(columns))


def glossary(columns: Sequence[Column]) -> Markup:
    """What the columns of a table mean, closed at first: titles do not reach touch and print."""
    pairs = dict.fromkeys((column.header, column.meaning) for column in columns)
    terms = [element("div", element("dt", name), element("dd", text)) for name, text in pairs]
    summary = element("summary", "What the columns mean")
    return element("details", summary, element("dl", *terms), class_="glossary")


def fact_list(pairs: Iterable[tuple[str, object]]) -> Markup:
    """A definition list of names and values; pairs whose value is None are left out."""
    rows = [
        element("div", element("dt", name), element("dd", value))
        for name, value in pairs
        if value is not None
    ]
    return element("dl", *rows, class_="facts")


def section(heading: str, *content: object, identity: str | None = None) -> Markup:
    """A section under a second-level heading, which links to itself; see ``anchor``.

    ``identity`` is needed where a page may have two sections of the same heading.
    """
    name = identity or anchor(heading)
    link = element("a", class_="anchor", href=f"#{name}", aria_label="Link to this section")
    return element("section", element("h2", heading, " ", link), *content, id=name)


def anchor(heading: str) -> str:
    """Return a heading as part of an address: its letters and digits, joined by hyphens."""
    return "-".join(re.findall("[a-z0-9]+", heading.lower())) or "section"


def paragraph(*content: object, kind: str | None = None) -> Markup:
    """A paragraph; ``kind`` is its CSS class."""
    return element("p", *content, class_=kind)


def code(text: str) -> Markup:
    """Text in a fixed-width font."""
    return element("code", text)
