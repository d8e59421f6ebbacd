"""Where to compute, and that the same input gives the same bits there."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

from capture.errors import ConfigError

MAX_PACKING_THREADS = 8
"""Each packs a table of up to 24 MB."""


def choose_device(wanted: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device asked for; raises ``ConfigError`` where there is none."""
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise ConfigError("training.device", "got cuda, but torch finds no CUDA device here")
    return torch.device("cuda" if available and wanted != "cpu" else "cpu")


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def packing_threads(device: torch.device) -> int:
    """How many threads should pack what was recorded while training waits for them; 0: one beside
    training.

    Where training computes on every core, a core that is taken from one of torch's threads stops
    them all: they wait for each other at the end of each operation. Taking turns costs half.
    """
    cores = available_cores()
    busy = device.type == "cpu" and torch.get_num_threads() >= cores
    return min(cores, MAX_PACKING_THREADS) if busy else 0


@contextmanager
def deterministic() -> Iterator[None]:
    """Within: torch's operations give the same bits for the same input, or refuse to run."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    settings: Any = sys.modules["torch.utils.deterministic"]
    products = torch.backends.cuda.matmul
    before = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    partial_sums = products.allow_bf16_reduced_precision_reduction
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = False  # a costly aid for finding reads of such memory
    products.allow_bf16_reduced_precision_reduction = False  # the audit counts on one rounding
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        settings.fill_uninitialized_memory = before[1]
        products.allow_bf16_reduced_precision_reduction = partial_sums
