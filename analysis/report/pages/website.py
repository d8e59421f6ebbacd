"""The report as a website: its chapters, links between pages, and the HTML document of a page.

Pages can be read from disk, without a network. JavaScript only adds sorting and searching.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from analysis.report.drawing.markup import code, element, fragment

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; style-src 'self' file: 'unsafe-inline'; script-src 'self' file:; "
    "img-src 'self' file: data:; base-uri 'none'; form-action 'none'"
)
"""What a page may load. ``file:`` is for browsers in which 'self' excludes files on disk."""
CHAPTERS = {
    "index.html": "Overview",
    "training.html": "Training",
    "neurons.html": "Neurons",
    "tokens.html": "Tokens",
    "clusters.html": "Clusters",
    "ablation.html": "Ablation",
    "faithfulness.html": "Faithfulness",
    "activations.html": "Activations",
    "influence.html": "Influence",
    "compare.html": "Comparison",
    "data.html": "Data",
}
"""Key of a chapter's first page → its name in the navigation bar."""

MIN_SECTIONS = 3
"""Pages with fewer sections do not list them."""
SECTION = re.compile(r'<section id="([^"]+)"><h2>(.*?) <a class="anchor"')
"""The beginning of what ``analysis.report.drawing.markup.section`` writes."""

Neuron = tuple[str, int]
"""Name of an MLP unit, and the neuron's column in it."""


@dataclass(frozen=True)
class ReportPage:
    """The content of one page."""

    key: str
    """Path in the report's folder."""
    title: str
    body: Markup
    chapter: str
    """Key of the chapter to which the page belongs."""


def neuron_key(neuron: Neuron) -> str:
    """Path of a neuron's page in the report's folder."""
    unit, number = neuron
    return f"neuron/{re.sub(r'[^A-Za-z0-9_.-]', '_', unit)}.{number}.html"


def token_key(token_id: int) -> str:
    """Path of a token's page. It has the id, because a token may hold any character."""
    return f"token/{token_id}.html"


@dataclass(frozen=True)
class Links:
    """Makes links to neurons and tokens that have a page, and plain text of others."""

    neurons: frozenset[Neuron]
    tokens: frozenset[int]
    root: str = ""
    """Relative path from the linking page to the report's folder: "" or "../"."""

    def from_subfolder(self) -> "Links":
        """Return the links for pages in a subfolder of the report."""
        return Links(self.neurons, self.tokens, "../")

    def neuron(self, neuron: Neuron, words: str | None = None) -> Markup:
        """A link that reads ``words``, or else the unit and the number of the neuron."""
        unit, number = neuron
        name = words if words is not None else f"{unit} · {number}"
        if neuron not in self.neurons:
            return element("span", name, class_="neuron")
        return element("a", name, href=self.root + neuron_key(neuron), class_="neuron")

    def token(self, token_id: int, token: str) -> Markup:
        if token_id not in self.tokens:
            return token_text(token)
        return element("a", token, href=self.root + token_key(token_id), class_="token")


def token_text(token: str) -> Markup:
    return element("span", token, class_="token")


def data_note(jobs: Sequence[str], root: str = "") -> Markup:
    """Links to the raw data of some analyses."""
    links = [element("a", job, href=f"{root}data.html#{job}") for job in jobs]
    words = fragment(*links, separator=", ")
    return element("p", "Data of this page: ", words, ".", class_="soft")


def command_note(what: str, command: str) -> Markup:
    """A note that something is missing, and the command that computes it."""
    return element("p", f"{what} ", code(command), class_="note")


def render_page(page: ReportPage, run_uri: str) -> bytes:
    """The HTML document of a page, as UTF-8."""
    root = "../" * page.key.count("/")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{CONTENT_SECURITY_POLICY}">'),
        element("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name_="color-scheme", content="light dark"),
        element("title", f"{page.title} · Ontogeny"),
        element("link", rel="stylesheet", href=f"{root}style.css"),
        element("script", src=f"{root}report.js", defer=True),
    )
    body = element(
        "body",
        element("a", "Skip to the content", href="#content", class_="skip"),
        element("div", navigation_bar(page, root), find_box(root), class_="header"),
        element("main", with_contents(page.body), id="content", tabindex="-1"),
        element("footer", "Ontogeny report of ", code(run_uri)),
    )
    html = element("html", head, body, lang="en")
    return f"<!doctype html>\n{html}\n".encode()


def find_box(root: str) -> Markup:
    """A search field that leads to the neurons; hidden until the page's script shows it."""
    return element(
        "form",
        element("label", "Find", for_="find-query"),
        element("input", type="search", id="find-query", placeholder="neuron 166, or a token"),
        class_="find",
        role="search",
        data_page=f"{root}neurons.html",
        hidden=True,
    )


def with_contents(body: Markup) -> Markup:
    """The body with links to its sections below the heading, if it has ``MIN_SECTIONS``."""
    sections = SECTION.findall(body)
    start = body.find("<section")
    if len(sections) < MIN_SECTIONS:
        return body
    # What was found is markup that ``section`` has escaped.
    items = [element("li", element("a", Markup(name), href=f"#{key}")) for key, name in sections]
    links = element("nav", element("ul", *items), class_="contents", aria_label="On this page")
    return fragment(Markup(body[:start]), links, Markup(body[start:]))


def navigation_bar(page: ReportPage, root: str) -> Markup:
    links: Sequence[Markup] = [
        element(
            "a",
            name,
            href=root + key,
            aria_current="page" if key == page.key else "true" if key == page.chapter else None,
        )
        for key, name in CHAPTERS.items()
    ]
    items = fragment(*(element("li", link) for link in links))
    return element("nav", element("ul", items), aria_label="Chapters")
