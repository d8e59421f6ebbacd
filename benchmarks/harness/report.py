"""Results as a printed table and as JSON; a description of the machine."""

import os
import platform
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import torch

from benchmarks.harness.recording import Sizes
from benchmarks.harness.timing import Line, Samples, quartiles
from capture.format.run_yaml import git_commit


@dataclass(frozen=True)
class Result:
    """One line of the table. Triples are first quartile, median and third quartile of rounds."""

    name: str
    note: str
    milliseconds: tuple[float, float, float]
    """Milliseconds per training step."""
    ratio: tuple[float, float, float]
    """Time over that of the plain steps before and after."""
    block_milliseconds: list[float]
    """Milliseconds per step of every block."""
    error: float
    """Largest error of any gradient, or of an outlier, against the loop of one-datum passes."""
    peak_bytes: int | None
    """Peak resident memory of the process; None if the system does not report it."""
    sizes: Sizes | None = None


def make_result(line: Line, samples: Samples, error: float) -> Result:
    milliseconds = [1000 * seconds for seconds in samples.seconds]
    ratios = [own / base for own, base in zip(samples.seconds, samples.plain, strict=True)]
    return Result(
        line.name,
        line.note,
        quartiles(milliseconds),
        quartiles(ratios),
        milliseconds,
        error,
        samples.peak_bytes,
    )


HEAD = (
    f"{'':<4} {'method':<46} {'ms/step':>9} {'IQR':>15} {'× plain':>8} {'IQR':>13} "
    f"{'error':>8} {'peak MB':>8} {'B/row':>6} {'KB/datum':>8}"
)


def table(results: list[Result], missing: list[str]) -> str:
    """Return the printed table: a line per result, and numbered notes below."""
    rows = [row(number, result) for number, result in enumerate(results, 1)]
    notes = [f"[{number}] {result.note}" for number, result in enumerate(results, 1)]
    return "\n".join([HEAD, "-" * len(HEAD), *rows, *missing, "", *notes])


def row(number: int, result: Result) -> str:
    low, middle, high = result.milliseconds
    ratio_low, ratio, ratio_high = result.ratio
    cells = [
        f"{f'[{number}]':<4} {result.name:<46}",
        f"{middle:>9,.1f} {f'{low:,.1f}–{high:,.1f}':>15}",
        f"{ratio:>8,.2f} {f'{ratio_low:,.2f}–{ratio_high:,.2f}':>13}",
        f"{result.error:>8.0e}",
        f"{'' if result.peak_bytes is None else f'{result.peak_bytes / 1e6:,.0f}':>8}",
    ]
    if result.sizes:
        sizes = result.sizes
        cells.append(f"{sizes.bytes_per_row:>6.2f} {sizes.bytes_per_datum / 1000:>8.2f}")
    return " ".join(cells).rstrip()


def as_json(
    found_on: dict[str, object],
    setting: dict[str, object],
    results: list[Result],
    missing: list[str],
) -> dict[str, object]:
    """Return the results with every sample, ready for JSON."""
    lines = [asdict(result) for result in results]
    return {"machine": found_on, "setting": setting, "results": lines, "missing": missing}


def machine() -> dict[str, object]:
    """Return hardware, software versions, git commit and the load average at this moment."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": cpu_model(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "opacus": opacus_version(),
        "commit": git_commit(),
        "load_average": os.getloadavg() if hasattr(os, "getloadavg") else None,
    }


def cpu_model() -> str:
    """Return the processor's name; ``platform`` knows it only where /proc/cpuinfo is missing."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def opacus_version() -> str | None:
    try:
        return metadata.version("opacus")
    except metadata.PackageNotFoundError:
        return None
