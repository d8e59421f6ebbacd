"""Bounds on the numbers that a user gives."""

from capture.errors import ConfigError


def at_least(name: str, found: float, least: float) -> None:
    """Raises ``ConfigError`` for less, or what is no number."""
    if not found >= least:
        raise ConfigError(name, f"got {found}, must be at least {least}")


def at_most(name: str, found: float, most: float) -> None:
    """Raises ``ConfigError`` for more, or what is no number."""
    if not found <= most:
        raise ConfigError(name, f"got {found}, must be at most {most}")
