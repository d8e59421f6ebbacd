"""A page that stands alone: one HTML file with its style inside, readable without a network."""

from importlib import resources

from markupsafe import Markup

from analysis.report.drawing.markup import code, element
from analysis.report.pages.website import CONTENT_SECURITY_POLICY


def standalone_page(title: str, body: Markup, place: str) -> bytes:
    """Return the document as UTF-8; ``place`` names where its data come from."""
    style = (resources.files("analysis.report") / "style.css").read_text()
    head = element(
        "head",
        element("meta", charset="utf-8"),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{CONTENT_SECURITY_POLICY}">'),
        element("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name_="color-scheme", content="light dark"),
        element("title", f"{title} · Ontogeny"),
        element("style", Markup(style)),  # our own file
    )
    main = element("main", element("h1", title), body, id="content")
    footer = element("footer", "Ontogeny, from ", code(place))
    html = element("html", head, element("body", main, footer), lang="en")
    return f"<!doctype html>\n{html}\n".encode()
