"""The methods that are timed. Each is a context that yields a function which takes one step.

A method opens its run in a new folder each time and closes it at the end, as a user does. Opening
and the first segment are not timed; ``Session.settle`` waits until all that was recorded is stored.
"""

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ontogeny
from benchmarks.body.workloads import Loop
from capture.config.reading import make_config
from capture.config.records import RecordKind
from capture.corpus.datums import Corpus, Datums, Vocabulary
from capture.device import deterministic, packing_threads
from capture.engine.build import build_engine, complete_config
from capture.engine.observer import Observer
from capture.engine.step_plan import StepPlan
from capture.format.markers import START, Marker, write_marker
from capture.store import Store
from capture.training.recorder import Recorder


def nothing() -> None:
    """Do nothing; the default of ``Session.settle``."""


@dataclass(frozen=True)
class Session:
    """A method that is running."""

    step: Callable[[], None]
    settle: Callable[[], None] = nothing
    """Wait until everything that was recorded so far is stored."""


Open = Callable[[Loop, Path, int], AbstractContextManager[Session]]
"""Opens a method for a loop, with a folder to write to and the steps of a segment."""


@contextmanager
def plain(loop: Loop, folder: Path, segment_steps: int) -> Iterator[Session]:
    yield Session(loop.take_step)


def recorded(*kinds: RecordKind) -> Open:
    """Return recording of the user's loop by ``ontogeny.record``: outliers, factors or both."""

    @contextmanager
    def opened(loop: Loop, folder: Path, segment_steps: int) -> Iterator[Session]:
        with ontogeny.record(
            loop.model,
            loop.optimizer,
            run=str(folder / "run"),
            units=loop.workload.units,
            datums=loop.workload.tokens(),
            outliers=ontogeny.OutlierConfig(enabled="outliers" in kinds),
            factors=ontogeny.FactorConfig(enabled="factors" in kinds),
            segment_steps=segment_steps,
        ) as recorder:
            flush = recorder._recorder.flush
            yield Session(lambda: loop.take_step(recorder.datums), flush)

    return opened


def captured(*kinds: RecordKind) -> Open:
    """Return training by ``ontogeny capture`` of the same model; no kinds: checkpoints alone.

    Its own loop takes the steps, so the plain steps beside it are those of the user's loop.
    """

    @contextmanager
    def opened(loop: Loop, folder: Path, segment_steps: int) -> Iterator[Session]:
        plan = capture_plan(loop, segment_steps)
        engine = build_engine(plan, kinds)
        observer = Observer(plan, engine, kinds)
        store = Store(str(folder / "run"))
        write_marker(store, START, Marker(0, 0, ()))  # segment markers refer to it
        threads = packing_threads(engine.device)
        steps = plan.planned_steps(0)

        def step() -> None:
            planned = next(steps)
            with deterministic():
                observed = observer.step(planned)
            recorder.add_step(observed, planned.datum_N)
            if len(recorder.open.steps) == segment_steps:
                recorder.commit(engine.snapshot())

        with Recorder(store, engine.layout, [], packing_threads=threads) as recorder:
            yield Session(step, recorder.flush)

    return opened


def capture_plan(loop: Loop, segment_steps: int) -> StepPlan:
    """Return the plan of a capture with the loop's model, data and optimizer."""
    workload, tokens = loop.workload, loop.workload.tokens()
    names = [str(token) for token in range(workload.vocabulary)]
    counts = torch.bincount(torch.from_numpy(tokens).flatten(), minlength=len(names)).numpy()
    datums = Datums(tokens[:, :-1].copy(), tokens[:, 1:].copy())
    layers = workload.units[0].rpartition(".")[0]
    optimizer = {"kind": loop.kind, **({"weight_decay": 0.01} if loop.kind == "adamw" else {})}
    values: dict[str, Any] = {
        "corpus": {"window": workload.window},
        "model": {"kind": "hf", "hf": {"family": workload.family, "settings": workload.settings}},
        "training": {
            **{"epochs": 10**6, "batch": workload.batch, "clip": 1.0, "decay": 1.0},
            **{"learning_rate": loop.rate, "optimizer": optimizer, "device": loop.device},
            "precision": loop.precision,
        },
        "capture": {
            "units": list(workload.units),
            "segment_steps": segment_steps,
            "tally": {"units": [f"{layers}.*mlp.*.weight"]},
        },
    }
    return StepPlan(
        complete_config(make_config(values)), Corpus(Vocabulary(names, counts), datums, None, None)
    )


# --- other libraries ------------------------------------------------------------------------------


@contextmanager
def dattri(loop: Loop, folder: Path, segment_steps: int) -> Iterator[Session]:
    """Offload the factors of every step to disk, in the background; no audit, no selection."""
    import dattri_llm as dl  # pyright: ignore[reportMissingImports]
    from dattri_llm.utils.module import (  # pyright: ignore[reportMissingImports]
        rms_norm_module_kwargs,
    )

    layers = loop.workload.units[0].rpartition(".")[0] + "."
    hooked = {
        name: part
        for name, part in loop.model.named_modules()
        if name.startswith(layers) and dict(part.named_parameters(recurse=False))
    }
    norms: dict[str, Any] = {
        n: part for n, part in hooked.items() if "RMSNorm" in type(part).__name__
    }
    config = dl.HookManagerConfig(
        hook_types=dict.fromkeys(hooked, "linear_io"),
        layer_types=dict.fromkeys(norms, "nn.RMSNorm"),
        module_kwargs={
            name: rms_norm_module_kwargs(
                normalized_shape=part.weight.shape[0], eps=part.variance_epsilon
            )
            for name, part in norms.items()
        },
    )
    manager = dl.GradientStorageManager(str(folder / "dattri"))
    offload = dl.OffloadCallback(1, manager, recording_type="per_batch", async_write=True)
    hooks = dl.HookManager(loop.model, config=config, callbacks=[offload])
    with hooks.collect():
        yield Session(loop.take_step, lambda: offload._writer and offload._writer.flush())
    hooks.remove()


@contextmanager
def opacus(loop: Loop, folder: Path, segment_steps: int) -> Iterator[Session]:
    """Form every datum's dense gradient of the layers by Opacus' hooks; nothing is stored."""
    from opacus import GradSampleModule  # pyright: ignore[reportMissingImports]

    layers = loop.workload.units[0].rpartition(".")[0]
    holder, _, name = layers.rpartition(".")
    parent = loop.model.get_submodule(holder)
    own = getattr(parent, name)
    linears = nn.ModuleList([part for part in own.modules() if isinstance(part, nn.Linear)])
    wrapped = GradSampleModule(linears, batch_first=True, loss_reduction="sum")

    def step() -> None:
        loop.take_step()
        for parameter in linears.parameters():
            parameter.grad_sample = None  # pyright: ignore[reportAttributeAccessIssue]

    yield Session(step)
    wrapped.remove_hooks()
    for parameter in linears.parameters():
        for attribute in ("grad_sample", "_forward_counter"):
            if hasattr(parameter, attribute):
                delattr(parameter, attribute)


@contextmanager
def vmap(loop: Loop, folder: Path, segment_steps: int) -> Iterator[Session]:
    """Form every datum's dense gradient by ``torch.func.vmap(grad)``, then take a plain step."""
    numbers = count()

    def loss_of(weights: dict[str, Tensor], token_T: Tensor) -> Tensor:
        given = (token_T[None, :-1],)
        called = torch.func.functional_call(loop.model, weights, given, {"use_cache": False})
        return F.cross_entropy(called.logits[0], token_T[1:])

    captured = {n: p.detach() for n, p in loop.model.named_parameters() if loop.is_captured(n)}
    by_datum = torch.func.vmap(torch.func.grad(loss_of), in_dims=(None, 0), randomness="error")

    def step() -> None:
        datum_N = torch.from_numpy(loop.workload.datum_N(next(numbers)))
        by_datum(captured, loop.token_NT[datum_N])
        loop.take_step()

    yield Session(step)


def available(family: str) -> dict[str, Open]:
    """Return the methods that can be timed here on a model of this family, by name."""
    found: dict[str, Open] = {
        "plain": plain,
        "record: factors": recorded("factors"),
        "record: outliers": recorded("outliers"),
        "record: outliers and factors": recorded("outliers", "factors"),
        "capture: checkpoints": captured(),
        "capture: tallies": captured("tallies"),
        "capture: factors": captured("factors"),
        "capture: outliers and tallies": captured("outliers", "tallies"),
        "capture: all": captured("outliers", "tallies", "factors"),
        "torch.func: vmap(grad)": vmap,
    }
    if family != "llama":  # its Conv1D is no layer that the other libraries know
        return found
    others = {"dattri_llm": ("dattri-llm: factors", dattri), "opacus": ("Opacus: dense", opacus)}
    return found | {
        name: method
        for module, (name, method) in others.items()
        if importlib.util.find_spec(module)
    }
