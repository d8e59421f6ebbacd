"""Which kinds of record a capture makes of each step, and what decides that."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from capture.errors import ConfigError

RecordKind = Literal["outliers", "tallies", "factors"]
"""What can be recorded of a step beside its row of ``steps``; replaying adds any of them later."""
KINDS: tuple[RecordKind, ...] = ("outliers", "tallies", "factors")


@dataclass(frozen=True, kw_only=True)
class FactorConfig:
    """The inputs and output gradients from which every shift follows, exactly."""

    enabled: bool = False
    """Whether they are recorded while training runs."""
    precision: Literal["float32", "float16"] = "float32"
    """As computed, or rounded to half the size with the largest error recorded beside them."""


def wanted_kinds(names: Sequence[str], where: str) -> frozenset[RecordKind]:
    """The kinds of these names; raises ``ConfigError`` for none or an unknown one."""
    unknown = [name for name in names if name not in KINDS]
    if unknown or not names:
        found = repr(unknown[0]) if unknown else "none"
        raise ConfigError(where, f"got {found}, must be some of: {', '.join(KINDS)}")
    return frozenset(kind for kind in KINDS if kind in names)
