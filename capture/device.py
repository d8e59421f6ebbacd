"""Where to compute, and that the same input gives the same bits there."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

from capture.errors import ConfigError


def choose_device(wanted: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device asked for; raises ``ConfigError`` where there is none."""
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise ConfigError("training.device", "got cuda, but torch finds no CUDA device here")
    return torch.device("cuda" if available and wanted != "cpu" else "cpu")


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
