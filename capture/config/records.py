"""The kinds of record that a capture can make of each step."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from capture.errors import ConfigError
from capture.shifts.recorded_steps import require_entries

RecordKind = Literal["outliers", "tallies", "factors"]
"""What can be recorded for a step beside its row of ``steps``. A replay can add any of them
later."""
KINDS: tuple[RecordKind, ...] = ("outliers", "tallies", "factors")


@dataclass(frozen=True, kw_only=True)
class FactorConfig:
    """Settings of factors: the layer inputs and output gradients that determine every shift."""

    enabled: bool = False
    """Record factors while training runs."""
    precision: Literal["float32", "float16"] = "float32"
    """float32 as computed, or float16 at half the size, stored with its largest error."""
    packing: Literal["plain", "planes"] = "plain"
    """plain: the numbers as they are, which takes no time. planes: signs and exponents compressed
    apart from the rest, which saves 15 to 30 % of the bytes at 0.1 GB per second and core."""
    steps: list[str] = field(default_factory=list)
    """Record only segments with any of these steps, as in ``capture.outliers.steps``."""

    def __post_init__(self) -> None:
        require_entries(self.steps, "capture.factors.steps")


def wanted_kinds(names: Sequence[str], where: str) -> frozenset[RecordKind]:
    """Return the kinds with these names. Raises ``ConfigError`` for an unknown name or no name."""
    unknown = [name for name in names if name not in KINDS]
    if unknown or not names:
        found = repr(unknown[0]) if unknown else "none"
        raise ConfigError(where, f"got {found}, must be some of: {', '.join(KINDS)}")
    return frozenset(kind for kind in KINDS if kind in names)
