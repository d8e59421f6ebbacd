"""The site: which pages there are, how they link to each other, and the frame around each.

Pages work from a disk, without network and without JavaScript (which adds sorting and searching).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from analysis.report.drawing.markup import Html, code, element, together

POLICY = (
    "default-src 'none'; style-src 'self' file: 'unsafe-inline'; script-src 'self' file:; "
    "img-src 'self' file: data:; base-uri 'none'; form-action 'none'"
)
"""What a page may load. ``file:`` is for browsers in which 'self' does not hold on a disk."""
CHAPTERS = {
    "index.html": "Overview",
    "neurons.html": "Neurons",
    "tokens.html": "Tokens",
    "clusters.html": "Clusters",
    "silencing.html": "Silencing",
    "faithfulness.html": "Faithfulness",
    "activations.html": "Activations",
}
"""Key → name in the bar of navigation."""

Neuron = tuple[str, int]
"""Unit and column."""


@dataclass(frozen=True)
class Page:
    """One page, without its frame."""

    key: str
    """Its path in the report's folder."""
    title: str
    body: Html
    chapter: str
    """Key of the chapter that it belongs to."""


def neuron_key(neuron: Neuron) -> str:
    unit, number = neuron
    return f"neuron/{re.sub(r'[^A-Za-z0-9_.-]', '_', unit)}.{number}.html"


def token_key(token_id: int) -> str:
    """By id: a token may hold any character."""
    return f"token/{token_id}.html"


@dataclass(frozen=True)
class Links:
    """Links to neurons and tokens that have pages; plain text for the others."""

    neurons: frozenset[Neuron]
    tokens: frozenset[int]
    up: str = ""
    """From the page to the report's folder: "" or "../"."""

    def within(self) -> "Links":
        """The same for pages in a folder."""
        return Links(self.neurons, self.tokens, "../")

    def neuron(self, neuron: Neuron, words: str | None = None) -> Html:
        unit, number = neuron
        name = words if words is not None else f"{unit} · {number}"
        if neuron not in self.neurons:
            return element("span", name, class_="neuron")
        return element("a", name, href=self.up + neuron_key(neuron), class_="neuron")

    def token(self, token_id: int, token: str) -> Html:
        if token_id not in self.tokens:
            return token_text(token)
        return element("a", token, href=self.up + token_key(token_id), class_="token")


def token_text(token: str) -> Html:
    return element("span", token, class_="token")


def command_note(what: str, command: str) -> Html:
    """Says that something has not been computed, and how it is."""
    return element("p", f"{what} ", code(command), class_="note")


def rendered(page: Page, run_uri: str) -> bytes:
    """The whole document, UTF-8."""
    up = "../" * page.key.count("/")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
        element("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name_="color-scheme", content="light dark"),
        element("title", f"{page.title} · Ontogeny"),
        element("link", rel="stylesheet", href=f"{up}style.css"),
        element("script", src=f"{up}report.js", defer=True),
    )
    body = element(
        "body",
        element("a", "Skip to the content", href="#content", class_="skip"),
        navigation(page, up),
        element("main", page.body, id="content", tabindex="-1"),
        element("footer", "Ontogeny: what each datum did to each weight of ", code(run_uri)),
    )
    html = element("html", head, body, lang="en")
    return f"<!doctype html>\n{html}\n".encode()


def navigation(page: Page, up: str) -> Html:
    links: Sequence[Html] = [
        element(
            "a",
            name,
            href=up + key,
            aria_current="page" if key == page.key else "true" if key == page.chapter else None,
        )
        for key, name in CHAPTERS.items()
    ]
    items = together(*(element("li", link) for link in links))
    return element("nav", element("ul", items), aria_label="Chapters")
