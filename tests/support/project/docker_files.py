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
