"""Measure how capture grows with the number of steps, and attribution with the number of shards.

The run is that of a tiny model, whose steps cost so little that any growth is visible. Time, memory
and stored bytes are sampled at 100, 200, 500, … steps, then time and memory of an attribution over
the first 1, 2, 5, … segments. The exponent is the slope of a straight line through the samples on
double logarithmic axes: 1 for what is linear in the steps, 0 for what does not grow. Times are
processor time, which other work on the machine hardly affects; memory is the resident memory of
this process.
"""

import gc
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.attribution.attribute import attribute
from analysis.attribution.config import AttributionConfig
from analysis.run.run import open_run
from benchmarks.harness.workbench import zipf_tokens
from capture.config.reading import make_config
from capture.config.settings import Config
from capture.training.loop import Event, Progress, capture_run
from cluster.local.threads import run_job

SEGMENT_STEPS = 100
WINDOW, BATCH, TOKENS_PER_STEP = 8, 4, 32
VOCABULARY = 500
SERIES = (1, 2, 5)


@dataclass(frozen=True)
class Sample:
    """One measured point of a curve."""

    count: int
    """Number of steps taken, or of shards read."""
    seconds: float
    """Processor time of all threads, since the first step or for one attribution."""
    resident_bytes: int
    stored_bytes: int = 0


@dataclass(frozen=True)
class Growth:
    """The samples of capture and of attribution."""

    capture: list[Sample]
    attribution: list[Sample]

    def summary(self) -> dict[str, float]:
        """Return exponents, rates and rises computed from the samples, by name."""
        first, last = self.capture[0], self.capture[-1]
        steps = last.count - first.count
        shards = [sample.count for sample in self.attribution]
        seconds = [sample.seconds for sample in self.attribution]
        slope, start = np.polyfit(shards, seconds, 1)
        return {
            "capture_time_exponent": exponent(self.capture, lambda sample: sample.seconds),
            "stored_bytes_per_step": (last.stored_bytes - first.stored_bytes) / steps,
            "capture_memory_rise_bytes": last.resident_bytes - self.capture[1].resident_bytes,
            "processor_milliseconds_per_step": 1000 * (last.seconds - first.seconds) / steps,
            "attribution_seconds_per_shard": float(slope),
            "attribution_seconds_at_once": float(start),
        }


def exponent(samples: Sequence[Sample], value: Callable[[Sample], float]) -> float:
    """Return the slope of the least-squares line through the samples' logarithms."""
    found = [(sample.count, value(sample)) for sample in samples if value(sample) > 0]
    count, values = np.log(np.array(found, dtype=float)).T
    return float(np.polyfit(count, values, 1)[0])


def counts(most: int, least: int = 1) -> list[int]:
    """Return 1, 2, 5, 10, 20, … times ``least``, up to ``most``."""
    found = [least * step * 10**power for power in range(9) for step in SERIES]
    return [count for count in found if count <= most]


def measure_growth(num_steps: int) -> Growth:
    """Capture a run of ``num_steps`` steps, then attribute growing parts of it."""
    with tempfile.TemporaryDirectory() as folder:
        config = tiny_config(Path(folder), num_steps)
        captured = capture_samples(config, counts(num_steps, SEGMENT_STEPS))
        return Growth(captured, attribution_samples(config))


def tiny_config(folder: Path, num_steps: int) -> Config:
    """Return the configuration of a run with segments and epochs of 100 steps."""
    text = folder / "text.txt"
    stream = zipf_tokens(100 * TOKENS_PER_STEP + WINDOW, VOCABULARY)
    text.write_text(" ".join(f"w{token}" for token in stream))
    values = {
        "run": {"uri": str(folder / "run")},
        "corpus": {"kind": "text", "path": str(text), "window": WINDOW, "validation_share": 0.0},
        "model": {"layers": 2, "width": 16, "hidden": 16, "heads": 2},
        "training": {"epochs": num_steps // 100, "batch": BATCH, "device": "cpu", "decay": 1.0},
        "capture": {"segment_steps": SEGMENT_STEPS, "outliers": {"k": 200}},
    }
    more = ["corpus.test_share=0", "training.learning_rate=0.5", "capture.tally.enabled=false"]
    return make_config(values, more)


def capture_samples(config: Config, wanted: Sequence[int]) -> list[Sample]:
    """Capture the run and return a sample at each of the wanted numbers of steps."""
    found: list[Sample] = []
    start = math.nan

    def report(event: Event) -> None:
        nonlocal start
        if isinstance(event, Progress) and event.steps_done == 1:
            start = time.process_time()
        elif isinstance(event, Progress) and event.steps_done in wanted:
            seconds = time.process_time() - start
            found.append(Sample(event.steps_done, seconds, resident_bytes(), event.stored_bytes))

    capture_run(config, report)
    return found


def attribution_samples(config: Config) -> list[Sample]:
    """Return a sample for each attribution, over growing numbers of shards."""
    found = []
    for num_shards in counts(open_run(config.run.uri).steps_done // SEGMENT_STEPS):
        part = AttributionConfig(end_step=num_shards * SEGMENT_STEPS)
        gc.collect()
        start = time.process_time()
        attribute(open_run(config.run.uri), run_job, part)
        seconds = time.process_time() - start
        found.append(Sample(num_shards, seconds, resident_bytes()))
    return found


def resident_bytes() -> int:
    """Return the present resident memory of this process (Linux)."""
    status = Path("/proc/self/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) * 1024


def as_json(growth: Growth) -> dict[str, Any]:
    return asdict(growth) | {"summary": growth.summary()}
