"""What capture gains by workers: ``python -m benchmarks.scale.capture``.

The study's model on text that Python carries, captured to a folder by one worker and by two, of one
thread each, joined by gloo as Ray Train joins them (Ray itself only places and starts them).

- *strong*: the same batch, shared out. What a user gains; small shares compute less efficiently.
- *weak*: the same number of slots for each worker, so that the batch grows with the workers.

Timed is the wall clock from the first commit to the last step, so that start-up and the last write
are left out and writing beside training is in. *Efficiency* is datums a second over what as many
single workers would do. The *cost of a worker* is a step's milliseconds beyond those of a single
worker with as many slots: waiting for the slowest, adding up gradients, comparing and gathering.
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
    """One way to share out the work."""

    name: str
    workers: int
    batch: int
    milliseconds: list[float]
    """Per step, a sample a round."""

    @property
    def step(self) -> float:
        return statistics.median(self.milliseconds)

    @property
    def datums_per_second(self) -> float:
        return 1000 * self.batch / self.step


def main() -> None:
    arguments = parse_arguments()
    segment, segments, rounds = (5, 2, 1) if arguments.quick else (50, 4, arguments.rounds)
    ways = [("alone", 1, 20), ("half", 1, 10), ("strong", 2, 20), ("weak", 2, 40)]
    samples: dict[str, list[float]] = {name: [] for name, _, _ in ways}
    for _ in range(rounds):
        for name, workers, batch in ways:
            samples[name].append(milliseconds(workers, batch, segment, segments))
    lines = [Line(name, workers, batch, samples[name]) for name, workers, batch in ways]
    found = figures({line.name: line for line in lines})
    print("\n".join(map(described, lines)) + "\n" + json.dumps(found, indent=1))
    if arguments.json:
        values = {"lines": [asdict(line) for line in lines], "figures": found}
        values |= {"segment_steps": segment, "segments": segments, "machine": machine()}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(values, indent=1) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale.capture", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="does everything work?")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results there too")
    return parser.parse_args()


def figures(line: dict[str, Line]) -> dict[str, float]:
    """What the lines say of two workers."""
    alone, half, strong, weak = (line[name] for name in ("alone", "half", "strong", "weak"))
    return {
        "strong_efficiency": strong.datums_per_second / alone.datums_per_second / 2,
        "weak_efficiency": weak.datums_per_second / alone.datums_per_second / 2,
        "strong_cost_of_a_worker_ms": strong.step - half.step,
        "weak_cost_of_a_worker_ms": weak.step - alone.step,
    }


def described(line: Line) -> str:
    return (
        f"{line.name:<8} {line.workers} workers, batch {line.batch}: {line.step:.1f} ms a step, "
        f"{line.datums_per_second:.0f} datums/s"
    )


def milliseconds(workers: int, batch: int, segment: int, segments: int) -> float:
    """Of a step, in a run of so many segments of which the first is not timed."""
    with tempfile.TemporaryDirectory() as folder:
        captured(Path(folder), workers, batch, segment, segments)
        return float((Path(folder) / "milliseconds").read_text())


def captured(folder: Path, workers: int, batch: int, segment: int, segments: int) -> Config:
    """A run in a folder, by so many workers of a thread each, and how long a step of it took."""
    text = folder / "text.txt"
    text.write_text(" ".join(reference_tokens(batch * segment * segments * WINDOW + 1)))
    config = config_of(text, workers, batch, segment)
    with mock.patch.dict(os.environ, {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}):
        spawn(work, (workers, config, str(folder)), nprocs=workers)
    return config


def reference_tokens(number: int) -> list[str]:
    """So many words that a basic tokenizer leaves as they are, the reference's over and over."""
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


def work(rank: int, workers: int, config: Config, folder: str) -> None:
    """One worker; the first one writes down how long a step took."""
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=workers)
    moments: list[float] = []

    def note(event: Event) -> None:
        if isinstance(event, Progress):
            moments.append(time.perf_counter())

    group = DistributedGroup(torch.device("cpu")) if workers > 1 else SINGLE_PROCESS
    capture_run(config, note, group=group, owner="benchmark.1")
    if rank == 0:
        first = config.capture.segment_steps
        timed = moments[first - 1 : -1]  # the last step waits for its segment to be stored
        spent = 1000 * (timed[-1] - timed[0]) / (len(timed) - 1)
        (Path(folder) / "milliseconds").write_text(str(spent))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
