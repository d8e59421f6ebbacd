"""The writing thread reads tensors and never computes with torch.

A second thread that computes with torch gets its own OpenMP threads. There are then more of them
than cores, and those of the training thread sleep between operations: a step of the study's model
took 1.6 times as long after the first tallies had been written.
"""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_run, tiny_config
from torch.utils._python_dispatch import TorchDispatchMode

from capture.training.recorder import Recorder


class Computing(TorchDispatchMode):
    """Records every operation of this thread whose output is not a view of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            self.found.add(str(func))
        return func(*args, **(kwargs or {}))


def test_the_mode_finds_operations_that_compute() -> None:
    with Computing() as seen:
        torch.arange(6).reshape(2, 3)[0].detach().numpy()
    assert not seen.found - {"aten.arange.default", "aten.detach.default"}
    with Computing() as seen:
        torch.ones(3).nonzero()
    assert "aten.nonzero.default" in seen.found


def test_the_writing_thread_computes_nothing_with_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: set[str] = set()
    threads: set[str] = set()

    def watched(write: Any) -> Any:
        def under_watch(*given: Any) -> int:
            threads.add(threading.current_thread().name)
            with Computing() as seen:
                size = write(*given)
            found.update(seen.found)
            return size

        return under_watch

    for name in ("write", "write_part"):
        monkeypatch.setattr(Recorder, name, watched(getattr(Recorder, name)))
    make_run(tiny_config(tmp_path, "capture.factors.enabled=true", "training.optimizer.kind=adamw"))
    assert threads == {"recorder"}
    assert found <= {"aten.detach.default"}
