"""Measure studies side by side, in fresh processes.

A fresh process imports what it runs by the name of its module, which cannot be that of
``python -m benchmarks.studies``: so this is a module of its own.
"""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks.studies.study import Results, Study


def study_of(name: str) -> Study:
    """Return the study of a name."""
    module = import_module(f"benchmarks.studies.{name.replace('-', '_')}")
    return module.STUDY


def pool_of(size: int) -> Executor:
    """Return a pool of so many fresh processes."""
    return ProcessPoolExecutor(size, mp_context=get_context("spawn"))


def measured(
    name: str, folder: Path, seeds: Sequence[int], threads: int
) -> tuple[Results, float, float]:
    """Train and measure a study; return its results, and wall and processor time in seconds."""
    torch.set_num_threads(threads)
    start, worked = time.monotonic(), time.process_time()
    results = study_of(name).measure(folder, seeds)
    return results, time.monotonic() - start, time.process_time() - worked


def each_measured(
    names: Sequence[str], folder: Path, seeds: Sequence[int], threads: int, processes: int
) -> Iterator[tuple[str, Results, str]]:
    """Yield name, results and time of each study, as they end."""
    asked = {name: (name, folder, seeds or study_of(name).seeds, threads) for name in names}
    if min(processes, len(names)) == 1:
        for name, words in asked.items():
            yield name, *timed(*measured(*words))
        return
    with pool_of(processes) as pool:
        running: dict[Future[tuple[Results, float, float]], str] = {}
        while asked or running:
            unfinished = {*asked, *running.values()}
            for name in [name for name in asked if not unfinished & set(study_of(name).after)]:
                running[pool.submit(measured, *asked.pop(name))] = name
            assert running, "studies wait for each other"
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(done), *timed(*done.result())


def timed(results: Results, wall_seconds: float, cpu_seconds: float) -> tuple[Results, str]:
    return results, f"{wall_seconds:.0f} seconds ({cpu_seconds:.0f} of processor time)"
