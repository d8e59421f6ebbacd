"""Commands that the documentation and the help show can be typed one after the other."""

import re
import shlex
from argparse import Namespace
from collections import defaultdict

from checkout import ROOT

from cluster.cli import parser

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHOWN_ONLY = {
    *("rows", "neuron", "token", "unit", "number", "measure", "quiet", "json", "ray", "no_ray"),
    *("skip_damaged", "command", "parser", "to", "replace"),
}
"""Arguments that change what is printed, or how it is computed, but not the question."""
NOT_SHOWN_ONLY = {("bigrams", "token"), ("activations", "neuron")}


def commands() -> list[list[str]]:
    """Return the words of each command on an example run, in reading order."""
    texts = [page.read_text() for page in PAGES]
    top = parser()
    texts.append(top.format_help())
    (every,) = [action for action in top._actions if action.dest == "command" or action.choices]
    assert every.choices
    texts += [made.description or "" for made in every.choices.values()]  # pyright: ignore
    lines = re.findall(r"^\s*\$? ?ontogeny +(.*)$", "\n".join(texts), flags=re.M)
    # A comment follows after several spaces or a sign.
    bare = [re.sub(r"(runs/.*?)( {2,}| #).*", r"\1", line) for line in lines if "…" not in line]
    return [shlex.split(line) for line in bare if re.match(r"\w+ +runs/", line)]


def question(arguments: Namespace, name: str) -> str:
    hidden = {each for each in SHOWN_ONLY if (name, each) not in NOT_SHOWN_ONLY}
    return str(sorted((k, v) for k, v in vars(arguments).items() if k not in hidden))


def test_they_do_not_ask_two_questions_under_one_name() -> None:
    asked: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    for words in commands():
        arguments = parser().parse_args(words)
        if "replace" in arguments:
            key = (words[0], arguments.run, arguments.name)
            asked[key].add(question(arguments, words[0]))
    assert len(asked) > 8
    assert {key: found for key, found in asked.items() if len(found) > 1} == {}
