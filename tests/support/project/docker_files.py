"""The folder of container files, secrets to fill in for a test, and a rule for image names."""

import re

from checkout import ROOT

DOCKER = ROOT / "docker"
SECRETS = {
    "AWS_ACCESS_KEY_ID": "0123456789abcdef0123",
    "AWS_SECRET_ACCESS_KEY": "0123456789abcdef0123456789abcdef01234567",
    "RAY_AUTH_TOKEN": "ab" * 32,
}


def unpinned(images: list[str]) -> list[str]:
    """Images without a version, or with one that moves."""
    return [name for name in images if not re.search(r":v?\d+\.\d+[\w.-]*(@sha256:\w+)?$", name)]


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    """(FROM, its arguments) and so on; comments left out, continued lines joined."""
    lines = [line for line in dockerfile.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    pairs = (line.split(maxsplit=1) for line in joined.splitlines() if line.strip())
    return [(word.upper(), rest.strip()) for word, rest in pairs]


def stages(dockerfile: str) -> dict[str, list[tuple[str, str]]]:
    """Stage → its instructions, FROM first."""
    found: dict[str, list[tuple[str, str]]] = {}
    for word, rest in instructions(dockerfile):
        name = rest.split()[-1] if word == "FROM" else list(found)[-1]
        found.setdefault(name, []).append((word, rest))
    return found
