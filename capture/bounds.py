"""Bounds on the numbers that a user gives."""

from capture.errors import ConfigError


def at_least(name: str, found: int, least: int) -> None:
    """Raises ``ConfigError`` for less."""
    if found < least:
        raise ConfigError(name, f"got {found}, must be at least {least}")


def at_most(name: str, found: int, most: int) -> None:
    """Raises ``ConfigError`` for more."""
    if found > most:
        raise ConfigError(name, f"got {found}, must be at most {most}")
