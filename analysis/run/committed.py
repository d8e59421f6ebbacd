"""The committed part of a run: its markers, and the files that they list."""

import logging
import warnings
from dataclasses import dataclass, field
from typing import Any

from analysis.run.scan import Shard
from capture.errors import IncompleteRunWarning, RunError
from capture.format import checkpoint
from capture.format.extent import extent_of, shortfall
from capture.format.markers import File, Marker
from capture.maintenance.verify import Finding, check_file
from capture.optim.optimizer import Tensors
from capture.store import Store

LOG = logging.getLogger(__name__)
MOST_SPANS = 8
"""Ranges of steps that a sentence lists at most."""


@dataclass(frozen=True, eq=False)
class Committed:
    """The markers of a run at the time when it was opened."""

    store: Store
    start: Marker
    segments: tuple[Marker, ...]
    skip_damaged: bool
    """Whether tables that differ from their markers are left out and listed in ``skipped``."""
    findings: dict[str, list[Finding]] = field(default_factory=dict)
    """Findings of each table checked so far, by key; filled with ``skip_damaged`` only."""
    can_be_replayed: bool = True
    """Whether a replay can add records: not for a run of a custom loop."""
    told: set[str] = field(default_factory=set)
    """Kinds of which a warning has said that some segments lack them."""

    @property
    def last(self) -> Marker:
        """The last marker."""
        return self.segments[-1] if self.segments else self.start

    @property
    def steps_done(self) -> int:
        """Number of committed steps."""
        return self.segments[-1].end_step if self.segments else 0

    @property
    def skipped(self) -> list[Finding]:
        """Findings of the tables left out so far."""
        return [finding for found in self.findings.values() for finding in found]

    def shards(self, kind: str, steps: range | None = None) -> list[Shard]:
        """Return tables of a kind, in order; with ``steps``, of segments that have any of these."""
        return [
            self.shard(file, segment)
            for segment in self.segments
            if steps is None or overlap(steps, segment)
            for file in segment.files_of(kind)
            if file.rows is not None and not self.skips(file)
        ]

    def skips(self, file: File) -> bool:
        """Return whether to leave a table out as damaged; each table is checked once."""
        if self.skip_damaged and file.key not in self.findings:
            self.findings[file.key] = check_file(self.store, file)
        return bool(self.findings.get(file.key))

    def require_shards(self, kind: str) -> list[Shard]:
        """Return all tables of a kind; raise ``RunError`` if there are none.

        Warns once of a kind that some segments lack, with the steps that have it.
        """
        shards = self.shards(kind)
        if not shards:
            raise self.lacking(kind)
        if kind not in self.told and (partly := self.partly_recorded(kind)):
            self.told.add(kind)
            LOG.warning(
                "%s: has %s. %s", self.uri, partly, self.how_to_add(kind, what="the others")
            )
        return shards

    @property
    def uri(self) -> str:
        return self.store.uri

    def how_to_add(self, kind: str, segment: int | None = None, what: str = "them") -> str:
        """Say how to add a kind to the segments that lack it, or to one of them."""
        if not self.can_be_replayed:
            return f"A custom loop is not replayed; it records {what} only while it trains"
        which = "" if segment is None else f" --segments {segment}"
        return f"Add {what}: ontogeny replay {self.uri} --record {kind}{which}"

    def partly_recorded(self, kind: str) -> str:
        """Say of which steps a kind is recorded; empty if of all steps, or of none.

        Tallies are of windows, not of segments, and are not asked about.
        """
        spans: list[range] = []
        for segment in self.segments:
            if not segment.files_of(kind):
                continue
            start = spans.pop().start if spans and spans[-1].stop == segment.first_step else None
            first = segment.first_step if start is None else start
            spans.append(range(first, segment.end_step))
        if not spans or spans == [range(self.steps_done)]:
            return ""
        number = sum(map(len, spans))
        listed = [f"{span.start}-{span.stop - 1}" for span in spans]
        few = listed if len(listed) <= MOST_SPANS else [*listed[: MOST_SPANS - 1], "…", listed[-1]]
        return f"{kind} of {number:,} of {self.steps_done:,} steps: {', '.join(few)}"

    def require_steps(self, kind: str, steps: range) -> None:
        """Raise ``RunError`` if a segment with any of the steps lacks a kind."""
        lacking = [
            (number, segment)
            for number, segment in enumerate(self.segments)
            if overlap(steps, segment) and not segment.files_of(kind)
        ]
        if lacking:
            number, segment = lacking[0]
            problem = f"has no {kind} of steps {segment.first_step} to {segment.end_step - 1}"
            raise RunError(self.uri, problem, self.how_to_add(kind, number))

    def lacking(self, kind: str) -> RunError:
        """Return an error that says why there are no tables of a kind, and how to get them."""
        uri = self.store.uri
        if self.skipped:
            problem = f"has no intact {kind}: {len(self.skipped)} shards are damaged"
            return RunError(uri, problem, "Restore the run from a copy")
        if self.segments:
            return RunError(uri, f"has no {kind} recorded", self.how_to_add(kind))
        remedy = "Let it train on: ontogeny capture … --resume"
        return RunError(uri, "holds no committed segment yet", remedy)

    def corpus_shard(self, name: str, remedy: str) -> Shard:
        """Return a table of the corpus; raise ``RunError`` with the remedy if there is none."""
        key = f"corpus/{name}.parquet"
        for file in self.start.files_of("corpus"):
            if file.key == key and file.rows is not None:
                return self.shard(file, self.start)
        raise RunError(self.store.uri, f"has no {key}", remedy)

    def shard(self, file: File, marker: Marker) -> Shard:
        return Shard(self.store, file, marker.first_step, marker.end_step)

    def checkpoint(self, step: int) -> Tensors:
        """Return the checkpoint after ``step`` updates; raise ``RunError`` if there is none."""
        kept = [0, *(segment.end_step for segment in self.segments)]
        if step not in kept:
            near = ", ".join(str(k) for k in sorted(sorted(kept, key=lambda k: abs(k - step))[:3]))
            problem = f"has no checkpoint after {step} steps; the nearest are after {near}"
            raise RunError(self.store.uri, problem)
        marker = next((m for m in self.segments if m.end_step == step), self.start)
        return checkpoint.read_checkpoint(self.store, step, marker)


def warn_if_short(store: Store, start: Marker, segments: tuple[Marker, ...], config: Any) -> None:
    """Warn the caller of ``open_run`` if the run holds fewer steps than it should.

    ``config``: the values of the run's configuration.
    """
    steps_done = segments[-1].end_step if segments else 0
    if problem := shortfall(store, len(segments), steps_done, extent_of(config, start)):
        remedy = "Run: ontogeny verify, or go on with: ontogeny capture … --resume"
        warnings.warn(f"{store.uri}: {problem}. {remedy}.", IncompleteRunWarning, stacklevel=4)


def overlap(steps: range, segment: Marker) -> bool:
    return any(step in steps for step in range(segment.first_step, segment.end_step))
