"""What could not be checked while a loop was recorded: said at its end, and kept in the run."""

import logging
from collections import Counter

from capture.engine.split import UNCHECKED
from capture.format.markers import MAX_REASONS, REASON_LENGTH

LOG = logging.getLogger(__name__)
NUMBERED = (
    "rows were numbered in the order in which they came, so a datum that came twice has two "
    "numbers. Pass datums=tokens, or call recorder.datums(ids)"
)
AMBIGUOUS = (
    "rows hold tokens with which several datums begin, and were taken for one of them. Call "
    "recorder.datums(ids) to tell them apart"
)


class Unchecked:
    """Reasons, and how often each occurred."""

    def __init__(self) -> None:
        self.total: Counter[str] = Counter()
        self.stored: Counter[str] = Counter()
        """What has been returned by ``take``."""

    def add(self, reason: str, count: int = 1) -> None:
        """Count a reason, a clause that follows a number of steps or rows."""
        if count and (reason in self.total or len(self.total) < MAX_REASONS):
            self.total[reason[:REASON_LENGTH]] += count

    def add_step(self, reason: str) -> None:
        """Count a step whose split could not be checked."""
        self.add(f"{UNCHECKED}: {reason}")

    def take(self) -> dict[str, int]:
        """Return what was counted since the last call."""
        new = self.total - self.stored
        self.stored = Counter(self.total)
        return dict(new)

    def warn(self, uri: str) -> None:
        """Log a warning for each reason."""
        for reason, count in self.total.items():
            LOG.warning("%s: %d %s", uri, count, reason)
