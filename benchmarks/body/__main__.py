"""Time recording on models that are all body: ``python -m benchmarks.body``.

Every round opens each method once, in a new folder: one segment that is not timed, then one that
is, with everything that it writes. Plain steps stand at both ends of a round. Processor time counts
all threads of the process, so work on a second core is not free; wall time depends on what else
runs.
"""

import argparse
import json
import shutil
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import torch

from benchmarks.body.methods import Open, Session, available
from benchmarks.body.workloads import WORKLOADS, Loop, Workload
from benchmarks.harness.report import machine
from benchmarks.harness.timing import peak_bytes, quartiles, reset_peak

HEAD = f"{'method':<32}{'cpu ms':>8} {'× plain':>8} {'quartiles':>13} {'wall':>6} {'MB/step':>8}"
HEAD += f" {'peak MB':>8}"


@dataclass
class Sample:
    """One timed segment."""

    cpu_ms: float
    """Processor time of a step, of all threads."""
    wall_ms: float
    step_bytes: float
    """Bytes on disk for each step, checkpoints included."""
    peak_bytes: int | None
    """Largest resident memory of the process during the segment."""
    device_bytes: int | None = None
    """Largest memory of tensors on the GPU during the segment; None on a CPU."""


def main() -> None:
    arguments = parse_arguments()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(arguments.threads)
    workload = WORKLOADS[arguments.model]
    methods = {
        name: method
        for name, method in available(workload.family).items()
        if name == "plain" or not arguments.only or any(each in name for each in arguments.only)
    }
    found = measure(workload, methods, arguments)
    lines = [describe(name, samples, found["plain"]) for name, samples in found.items()]
    print("\n".join([HEAD, *lines]))
    if arguments.json:
        setting = {
            **asdict(workload),
            **{name: getattr(arguments, name) for name in ("optimizer", "steps", "precision")},
            "device": device_name(arguments.device),
            "parameters": workload.parameters(),
        }
        samples = {name: [asdict(each) for each in own] for name, own in found.items()}
        values = {"machine": machine() | versions(), "setting": setting, "samples": samples}
        arguments.json.write_text(json.dumps(values, indent=1) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.body", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", choices=WORKLOADS, default="llama")
    parser.add_argument("--optimizer", choices=["sgd", "adamw"], default="sgd")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    parser.add_argument("--steps", type=int, default=50, help="steps of a segment (default 50)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--only", nargs="*", metavar="TEXT", help="methods whose name has this text"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the samples to PATH")
    return parser.parse_args()


def measure(
    workload: Workload, methods: dict[str, Open], arguments: argparse.Namespace
) -> dict[str, list[Sample]]:
    """Return the samples of all methods, in interleaved rounds of alternating order."""
    setting = (arguments.optimizer, arguments.device, arguments.precision)
    loops = {name: Loop(workload, *setting) for name in methods}
    found: dict[str, list[Sample]] = {name: [] for name in methods}
    others = [name for name in methods if name != "plain"]
    for number in range(arguments.rounds):
        for name in ["plain", *others[:: -1 if number % 2 else 1], "plain"]:
            sample = time_segment(methods[name], loops[name], arguments.steps)
            found[name].append(sample)
            print(f"round {number + 1}: {name}: {sample.cpu_ms:.1f} ms", flush=True)
    return found


def time_segment(method: Open, loop: Loop, steps: int) -> Sample:
    """Run a method for two segments, and time the second with all that is written of it."""
    folder = Path(tempfile.mkdtemp())
    try:
        with method(loop, folder, steps) as session:
            for _ in range(steps):
                session.step()
            settle(session, loop.device)
            reset_peak()
            if loop.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            cpu, wall = time.process_time(), time.perf_counter()
            for _ in range(steps):
                session.step()
            settle(session, loop.device)
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            peak = peak_bytes()
            on_device = torch.cuda.max_memory_allocated() if loop.device == "cuda" else None
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    finally:
        shutil.rmtree(folder)
    return Sample(1000 * cpu / steps, 1000 * wall / steps, size / (2 * steps), peak, on_device)


def settle(session: Session, device: str) -> None:
    """Wait until everything recorded is stored, and the device has done what it was given."""
    session.settle()
    if device == "cuda":
        torch.cuda.synchronize()


def device_name(device: str) -> str:
    """Return the name of the GPU, or of the processor."""
    return torch.cuda.get_device_name() if device == "cuda" else str(machine()["cpu"])


def describe(name: str, samples: list[Sample], plain: list[Sample]) -> str:
    """Return a line of the table: medians, and quartiles of the ratio to the plain median."""
    (_, base, _), (_, base_wall, _) = (
        quartiles([getattr(each, field) for each in plain]) for field in ("cpu_ms", "wall_ms")
    )
    low, middle, high = quartiles([each.cpu_ms / base for each in samples])
    wall = quartiles([each.wall_ms / base_wall for each in samples])[1]
    peak = max((each.peak_bytes or 0) for each in samples) / 1e6
    size = samples[-1].step_bytes / 1e6
    spread = f"{low:.2f}–{high:.2f}"
    return (
        f"{name:<32}{middle * base:>8.1f} {middle:>8.2f} {spread:>13} {wall:>6.2f} {size:>8.2f}"
        f" {peak:>8.0f}"
    )


def versions() -> dict[str, str | None]:
    """Return the versions of the libraries that are compared; None for one that is missing."""
    found: dict[str, str | None] = {}
    for name in ("transformers", "dattri-llm", "opacus"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


if __name__ == "__main__":
    main()
