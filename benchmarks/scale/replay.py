"""Measure the speed-up of replay by a second process: ``python -m benchmarks.scale.replay``.

This script captures the study's model on Python's own language reference with checkpoints alone.
Then it replays the outliers of all segments with one process and with two, each of one thread. Each
measurement replays a new copy of the run in new processes, as ``ontogeny replay`` does.
*Efficiency* is half of the speed-up of two processes over one. The *ceiling* is what the machine
allows: the time of one process alone over that of two independent ones at once, each of which
replays half of the segments.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from benchmarks.harness.report import machine
from benchmarks.scale.capture import WINDOW, config_of, reference_tokens
from capture.replay.segments import read_replayable_run
from capture.store import Store
from capture.training.loop import capture_run
from cluster.local.processes import replay_in_processes

BATCH = 20


@dataclass(frozen=True)
class Seconds:
    """Seconds of the replays, one sample per round; they include the start of the processes."""

    one: list[float]
    two: list[float]
    half_alone: list[float]
    """Half of the segments by one process."""
    halves_at_once: list[float]
    """Half of the segments by each of two such processes at once, of two copies of the run."""

    @property
    def figures(self) -> dict[str, float]:
        one, two = statistics.median(self.one), statistics.median(self.two)
        alone, both = map(statistics.median, (self.half_alone, self.halves_at_once))
        return {"efficiency": one / two / 2, "ceiling": alone / both}


def main() -> None:
    arguments = parse_arguments()
    segments, steps, rounds = (2, 3, 1) if arguments.quick else (8, 50, arguments.rounds)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        capture(run, segments * steps, steps)
        found = measure(run, segments, rounds)
    print(json.dumps(found.figures, indent=1))
    if arguments.json:
        values = asdict(found) | {"segments": segments, "segment_steps": steps}
        values |= {"figures": found.figures, "machine": machine()}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(values, indent=1) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale.replay", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="few steps, to test the script")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the results to PATH")
    return parser.parse_args()


def capture(run: Path, num_steps: int, segment_steps: int) -> None:
    """Capture a run of ``num_steps`` steps with checkpoints alone."""
    text = run.with_name("text.txt")
    text.write_text(" ".join(reference_tokens(num_steps * BATCH * WINDOW + 1)))
    config = config_of(text, workers=1, batch=BATCH, segment=segment_steps)
    recorded = replace(config.capture, record="checkpoints")
    capture_run(replace(config, capture=recorded), lambda event: None)


def measure(run: Path, segments: int, rounds: int) -> Seconds:
    """Time the four variants in every round."""
    found = Seconds([], [], [], [])
    whole, half = range(segments), range(segments // 2)
    for _ in range(rounds):
        found.one.append(seconds(run, whole, workers=1))
        found.two.append(seconds(run, whole, workers=2))
        found.half_alone.append(seconds(run, half, workers=1))
        found.halves_at_once.append(seconds(run, half, workers=1, at_once=2))
    return found


def seconds(run: Path, segments: Sequence[int], *, workers: int, at_once: int = 1) -> float:
    """Return the seconds until ``at_once`` replays of copies of the run are done."""
    copies = [run.with_name(f"copy-{number}") for number in range(at_once)]
    for copy in copies:
        shutil.copytree(run, copy)
    try:
        start = time.perf_counter()
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(lambda copy: replay(copy, segments, workers), copies))
        return time.perf_counter() - start
    finally:
        for copy in copies:
            shutil.rmtree(copy)


def replay(run: Path, segments: Sequence[int], workers: int) -> None:
    """Replay the outliers of these segments; assert that each was added."""
    found = list(
        replay_in_processes(read_replayable_run(Store(str(run))), segments, ("outliers",), workers)
    )
    assert all(replayed.added == ("outliers",) for replayed in found)


if __name__ == "__main__":
    main()
