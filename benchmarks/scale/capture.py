"""Measure the speed-up of capture by a second worker: ``python -m benchmarks.scale.capture``.

This script captures the study's model on Python's own language reference with one worker and with
two. Each has one thread; they communicate by gloo, as under Ray Train (Ray only places and starts
workers).

- *strong*: the batch stays the same and is divided among the workers. This is a user's speed-up;
  workers with few slots compute less efficiently.
- *weak*: every worker keeps its number of slots, so the batch grows with the workers.

The time is wall-clock time from the first commit to the last step. It excludes start-up and the
last write, and includes the writes that run while training. *Efficiency* is the datums per second
over those of as many independent workers. The *cost of a worker* is the time of a step beyond that
of a single worker with the same number of slots: waiting for the slowest worker, adding up
gradients, comparing and gathering.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

import torch
from torch import distributed as dist
from torch.multiprocessing.spawn import spawn

from benchmarks.harness.report import machine
from capture.config.reading import make_config
from capture.config.settings import Config
from capture.corpus.text import python_reference
from capture.process_group import SINGLE_PROCESS, DistributedGroup
from capture.training.loop import Event, Progress, capture_run

WINDOW = 35


@dataclass(frozen=True)
class Line:
    """One division of the work among workers."""

    name: str
    workers: int
    batch: int
    milliseconds: list[float]
    """Milliseconds per step, one sample per round."""

    @property
    def step(self) -> float:
        return statistics.median(self.milliseconds)

    @property
    def datums_per_second(self) -> float:
        return 1000 * self.batch / self.step


def main() -> None:
    arguments = parse_arguments()
    segment, segments, rounds = (5, 2, 1) if arguments.quick else (50, 4, arguments.rounds)
    settings = [("alone", 1, 20), ("half", 1, 10), ("strong", 2, 20), ("weak", 2, 40)]
    samples: dict[str, list[float]] = {name: [] for name, _, _ in settings}
    for _ in range(rounds):
        for name, workers, batch in settings:
            samples[name].append(step_milliseconds(workers, batch, segment, segments))
    lines = [Line(name, workers, batch, samples[name]) for name, workers, batch in settings]
    found = figures({line.name: line for line in lines})
    print("\n".join(map(describe, lines)) + "\n" + json.dumps(found, indent=1))
    if arguments.json:
        values = {"lines": [asdict(line) for line in lines], "figures": found}
        values |= {"segment_steps": segment, "segments": segments, "machine": machine()}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(values, indent=1) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale.capture", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="few steps, to test the script")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the results to PATH")
    return parser.parse_args()


def figures(line: dict[str, Line]) -> dict[str, float]:
    """Return efficiencies and costs of a second worker from the lines, by name."""
    alone, half, strong, weak = (line[name] for name in ("alone", "half", "strong", "weak"))
    return {
        "strong_efficiency": strong.datums_per_second / alone.datums_per_second / 2,
        "weak_efficiency": weak.datums_per_second / alone.datums_per_second / 2,
        "strong_cost_of_a_worker_ms": strong.step - half.step,
        "weak_cost_of_a_worker_ms": weak.step - alone.step,
    }


def describe(line: Line) -> str:
    return (
        f"{line.name:<8} {line.workers} workers, batch {line.batch}: {line.step:.1f} ms a step, "
        f"{line.datums_per_second:.0f} datums/s"
    )


def step_milliseconds(workers: int, batch: int, segment: int, segments: int) -> float:
    """Return the milliseconds per step of a new run; its first segment is not timed."""
    with tempfile.TemporaryDirectory() as folder:
        capture_timed(Path(folder), workers, batch, segment, segments)
        return float((Path(folder) / "milliseconds").read_text())


def capture_timed(folder: Path, workers: int, batch: int, segment: int, segments: int) -> Config:
    """Capture a run into the folder with workers of one thread each.

    Writes the time per step to the file ``milliseconds`` in the folder; returns the configuration.
    """
    text = folder / "text.txt"
    text.write_text(" ".join(reference_tokens(batch * segment * segments * WINDOW + 1)))
    config = config_of(text, workers, batch, segment)
    with mock.patch.dict(os.environ, {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}):
        spawn(run_worker, (workers, config, str(folder)), nprocs=workers)
    return config


def reference_tokens(number: int) -> list[str]:
    """Return ``number`` words of Python's language reference, repeated if it has fewer.

    The words are purely alphabetic, so that the tokenizer maps each to one token.
    """
    words = [word for word in python_reference().content.split() if word.isalpha()]
    return (words * (number // len(words) + 1))[:number]


def config_of(text: Path, workers: int, batch: int, segment: int) -> Config:
    values = {
        "run": {"uri": str(text.parent / "run")},
        "corpus": {"kind": "text", "path": str(text), "window": WINDOW, "validation_share": 0},
        "training": {"epochs": 1, "batch": batch, "device": "cpu"},
        "capture": {"segment_steps": segment},
        "workers": {"count": workers},
    }
    return make_config(values)


def run_worker(rank: int, workers: int, config: Config, folder: str) -> None:
    """Run one worker; that of rank 0 writes the milliseconds per step to the folder."""
    torch.set_num_threads(1)
    rendezvous = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=workers)
    moments: list[float] = []

    def note_time(event: Event) -> None:
        if isinstance(event, Progress):
            moments.append(time.perf_counter())

    group = DistributedGroup(torch.device("cpu")) if workers > 1 else SINGLE_PROCESS
    capture_run(config, note_time, group=group, owner="benchmark.1")
    if rank == 0:
        first = config.capture.segment_steps
        # From the first commit on, without the last step, which waits until its segment is stored.
        timed = moments[first - 1 : -1]
        spent = 1000 * (timed[-1] - timed[0]) / (len(timed) - 1)
        (Path(folder) / "milliseconds").write_text(str(spent))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
