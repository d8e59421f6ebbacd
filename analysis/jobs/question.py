"""The question that a set of tables answers: a command, its options, versions and steps."""

import json
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

from capture import __version__

PACKAGES = ("numpy", "pandas", "pyarrow", "scipy", "torch")
"""Packages whose versions are recorded beside Ontogeny's."""


@dataclass(frozen=True)
class Question:
    """What a set of tables answers. All values are plain JSON."""

    command: str
    options: dict[str, Any]
    """Settings by name, defaults included; empty for tables of earlier versions."""
    versions: dict[str, str]
    """Version by package."""
    steps: int = 0
    """Steps of training that the run had; set when the tables are written."""

    @classmethod
    def of(cls, command: str, *configs: Any) -> "Question":
        """Return the question that these configurations (dataclasses) ask together."""
        options: dict[str, Any] = {}
        for config in configs:
            options |= asdict(config)
        versions = {name: metadata.version(name) for name in PACKAGES}
        plain = json.loads(json.dumps(options, default=str))
        return cls(command, plain, {"ontogeny": __version__} | versions)

    def line(self) -> str:
        """Return the command and its options in one line, for people."""
        options = (f"{name}={json.dumps(value)}" for name, value in self.options.items())
        return " ".join([self.command, *options])
