"""The device to compute on, thread counts, and deterministic operations."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

from capture.errors import ConfigError

MAX_PACKING_THREADS = 8
"""Each thread packs a table of up to 24 MB."""


def choose_device(wanted: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """Return the requested device; raises ``ConfigError`` for cuda without a CUDA device."""
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise ConfigError("training.device", "got cuda, but torch finds no CUDA device here")
    return torch.device("cuda" if available and wanted != "cpu" else "cpu")


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def packing_threads(device: torch.device) -> int:
    """Return how many threads pack recorded tables while training waits.

    0 means that a single thread packs them while training continues.
    """
    # If training computes on every core, a packing thread takes a core from one of torch's threads,
    # and all of torch's threads wait for it at the end of each operation. Alternating between
    # training and packing costs half as much.
    cores = available_cores()
    busy = device.type == "cpu" and torch.get_num_threads() >= cores
    return min(cores, MAX_PACKING_THREADS) if busy else 0


@contextmanager
def deterministic() -> Iterator[None]:
    """Make torch's operations give the same bits for the same input, or raise, within the block."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    settings: Any = sys.modules["torch.utils.deterministic"]
    products = torch.backends.cuda.matmul
    before = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    partial_sums = products.allow_bf16_reduced_precision_reduction
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = False  # a debugging aid that costs time
    products.allow_bf16_reduced_precision_reduction = False  # the audit assumes one rounding
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        settings.fill_uninitialized_memory = before[1]
        products.allow_bf16_reduced_precision_reduction = partial_sums
