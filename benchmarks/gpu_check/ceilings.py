"""Measure the ceilings of a device: bytes copied and products of matrices each second.

``python -m benchmarks.gpu_check.ceilings cuda`` prints one line of JSON. The steps of a model are
compared with these, measured in the same check.
"""

import json
import sys
import time
from collections.abc import Callable

import torch

ROUNDS = 5
SIZES = {"cuda": (2**28, 8_192), "cpu": (2**22, 256)}
"""Numbers to copy, and the width of the matrices."""


def main() -> None:
    print(json.dumps(ceilings(sys.argv[1])))


def ceilings(device: str) -> dict[str, float]:
    """Return bytes a second of a copy (read and written) and FLOP a second of products."""
    count, width = SIZES[device]
    one = torch.ones(count, device=device)
    other = torch.empty_like(one)
    found = {"copy_bytes": 2 * one.nbytes / seconds_of(lambda: other.copy_(one), device)}
    for precision in (torch.bfloat16, torch.float32):
        left = torch.ones(width, width, device=device, dtype=precision)
        out = torch.empty_like(left)
        took = seconds_of(lambda left=left, out=out: torch.mm(left, left, out=out), device)
        found[f"{str(precision).rpartition('.')[2]}_flops"] = 2 * width**3 / took
    return found


def seconds_of(work: Callable[[], object], device: str) -> float:
    """Return the least time of some rounds, after one that is not timed."""
    times = []
    for _ in range(ROUNDS + 1):
        synchronize(device)
        began = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - began)
    return min(times[1:])


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
