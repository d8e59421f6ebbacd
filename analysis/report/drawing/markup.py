"""HTML and SVG as values. What is not markup already is text, and is escaped on its way in.

Corpus text may hold anything, ``<script>`` included. So there is one way to make markup from it,
``element``, and it escapes every child and every attribute that is not ``Html``.
"""

import html
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

VOID = {"meta", "link", "input", "br"}
NOTHING = "–"


class Html(str):
    """Markup that is safe to put on a page as it stands."""

    __slots__ = ()


def escaped(value: object) -> Html:
    """Markup as it is, anything else as text; quotes too, so it serves in attributes."""
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def element(name: str, *children: object, **attributes: object) -> Html:
    """``<name attributes>children</name>``; a child or an attribute of None is left out.

    An attribute's trailing underscore is dropped and inner ones become hyphens: ``class_``,
    ``aria_label``. True gives the bare attribute, False none.
    """
    parts = [f"<{name}"]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        attribute = key.rstrip("_").replace("_", "-")
        parts.append(f" {attribute}" if value is True else f' {attribute}="{escaped(value)}"')
    parts.append(">")
    if name not in VOID:
        parts += [escaped(child) for child in children if child is not None]
        parts.append(f"</{name}>")
    return Html("".join(parts))


def together(*parts: object, between: str = "") -> Html:
    """Parts one after the other; None is left out."""
    return Html(escaped(between).join(escaped(part) for part in parts if part is not None))


# --- numbers --------------------------------------------------------------------------------------


def whole(value: float) -> str:
    """1234567 → 1,234,567; nothing for NaN."""
    return NOTHING if math.isnan(value) else f"{round(value):,}"


def decimals(value: float, places: int = 2) -> str:
    """A number to so many places; ∞ and NaN as signs, a minus as a minus."""
    if math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:,.{places}f}".replace("-", "−")


def significant(value: float, digits: int = 3) -> str:
    """A number of any size to so many digits, without an exponent where that stays short."""
    if not math.isfinite(value) or value == 0:
        return decimals(value, 0)
    size = math.floor(math.log10(abs(value)))
    if -4 <= size < 7:
        return decimals(value, max(0, digits - 1 - size))
    return f"{value:.{digits - 1}e}".replace("-", "−")


def percent(share: float, places: int = 0) -> str:
    return NOTHING if math.isnan(share) else f"{decimals(100 * share, places)} %"


def between(low: float, high: float, show: Callable[[float], str]) -> str:
    """An interval in words; nothing for one that is unknown."""
    return f"{show(low)} to {show(high)}" if math.isfinite(low + high) else ""


def probability(value: float) -> str:
    return "< 0.001" if value < 0.001 else decimals(value, 3)


# --- tables ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """One column of a table: its head, and what stands in it for a row."""

    head: str
    cell: Callable[[Any], object]
    numeric: bool = False
    """Right-aligned, and sorted by value."""
    explained: str = ""
    """Shown on hovering over the head."""


def data_table(
    caption: str, columns: Sequence[Column], rows: Iterable[object], *, identity: str | None = None
) -> Html:
    """A table that scrolls in its own box; the page's script makes its heads sort."""
    heads = [
        element(
            "th",
            column.head,
            scope="col",
            class_="n" if column.numeric else None,
            title=column.explained or None,
        )
        for column in columns
    ]
    opening = [Html('<td class="n">') if column.numeric else Html("<td>") for column in columns]
    body = [
        Html(
            "<tr>"
            + "".join(
                f"{start}{escaped(column.cell(row))}</td>"
                for start, column in zip(opening, columns, strict=True)
            )
            + "</tr>"
        )
        for row in rows
    ]
    table = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *heads)),
        element("tbody", *body),
        class_="sortable",
        id=identity,
    )
    return element("div", table, class_="scroll", role="region", tabindex="0", aria_label=caption)


def facts(pairs: Iterable[tuple[str, object]]) -> Html:
    """A list of names and values."""
    rows = [
        element("div", element("dt", name), element("dd", value))
        for name, value in pairs
        if value is not None
    ]
    return element("dl", *rows, class_="facts")


def section(heading: str, *content: object, identity: str | None = None) -> Html:
    return element("section", element("h2", heading), *content, id=identity)


def paragraph(*content: object, kind: str | None = None) -> Html:
    return element("p", *content, class_=kind)


def code(text: str) -> Html:
    return element("code", text)
