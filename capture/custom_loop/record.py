"""Record a training loop of your own::

    from capture.custom_loop.record import record

    with record(model, optimizer, run="runs/mine", units=["*.weight"]) as recorder:
        for batch in loader:
            loss = model(batch).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

Nothing else of the loop changes. While the ``with`` lasts, the uses of the units are watched in
forward passes (``capture.custom_loop.loop_tape``), the optimizer's own hooks tell where a step
begins and ends, and each update is taken apart (``capture.custom_loop.update``), audited and stored
as a segment of a run.

Shapes: N datum of a step, by slot; P all captured parameters.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from capture.config.records import FactorConfig
from capture.config.settings import CaptureConfig, Config, RunConfig
from capture.corpus.datums import CorpusConfig
from capture.custom_loop.datums import Told, tables_of, window_of
from capture.custom_loop.recording import Recording
from capture.custom_loop.update import config_of, group_of
from capture.device import packers
from capture.errors import ConfigError, UnitError
from capture.format import checkpoint
from capture.format.markers import read_segments, require_start
from capture.format.run_yaml import MAX_BYTES, describe_run
from capture.gradients.factors import choose_units
from capture.gradients.layout import Layout
from capture.models.huggingface import stored_transposed
from capture.optim.config import TrainingConfig
from capture.shifts.outliers import OutlierConfig
from capture.shifts.tallies import TallyConfig
from capture.store import lease
from capture.store.config import StoreConfig
from capture.store.store import DEFAULT, Store
from capture.training.recorder import Recorder
from capture.training.run_start import check_tables, clear, may_begin, put_start


@contextmanager
def record(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    run: str,
    units: Sequence[str] = ("*",),
    datums: Told = None,
    vocabulary: Sequence[str] | None = None,
    outliers: OutlierConfig | None = None,
    factors: FactorConfig | None = None,
    segment_steps: int = 100,
    audit_tolerance: float = 1e-5,
    store: StoreConfig = DEFAULT,
    resume: bool = False,
    overwrite: bool = False,
) -> Iterator[Recording]:
    """Record what every datum does to the units of ``model`` in each of the optimizer's steps.

    run: folder or prefix; units: glob patterns over parameter names; datums: names of all datums,
    their tokens [N, T + 1] with a ``vocabulary``, or how many there are (by default they are
    numbered as they come); the others as in ``capture`` of a configuration, ``outliers`` by default
    the 1000 largest of each datum, or all if there are fewer.

    A run that exists is refused unless it is to be resumed, after its last committed step, or
    overwritten. What is left at the end is a shorter last segment; after an error the open segment
    is dropped. Raises ``ConfigError`` for an optimizer that is not known and for units that it does
    not train, ``UnitError`` for a use that cannot be split by datum, ``AuditError`` where shifts do
    not add up to what a step changed, and what the store raises.
    """
    chosen = own_units(model, units)
    tables = tables_of(datums, vocabulary)
    capture = CaptureConfig(
        units=list(chosen),
        outliers=outliers or OutlierConfig(k=min(1000, Layout.of(chosen).size)),
        factors=factors or FactorConfig(),
        segment_steps=segment_steps,
        audit_tolerance=audit_tolerance,
        tally=TallyConfig(enabled=False),
    )
    config = own_config(optimizer, chosen, run, store, capture, window=window_of(tables) or 1)
    layout = Layout.of(chosen, stored_transposed(model))
    described = own_description(config, chosen, layout)
    place = Store(run, store)
    lease.left_behind(place)
    may_begin(place, config, resume=resume, overwrite=overwrite)
    with ExitStack() as stack:
        holding = stack.enter_context(lease.held(place, lambda event: None))
        if may_begin(place, config, resume=resume, overwrite=overwrite):
            clear(place)
            weights = checkpoint.snapshot(model)
            put_start(place, described, weights, tables, holding.require)
        else:
            check_tables(place, tables)
        done = read_segments(place)
        at_once = packers(next(iter(chosen.values())).device)
        recorder = stack.enter_context(
            Recorder(place, layout, done, packers=at_once, may_commit=holding.require)
        )
        last = done[-1] if done else require_start(place)
        with Recording(recorder, config, model, optimizer, chosen, tables, last) as recording:
            yield recording


def own_units(model: nn.Module, patterns: Sequence[str]) -> dict[str, nn.Parameter]:
    """The parameters that match; raises ``ConfigError`` and ``UnitError``."""
    if isinstance(patterns, str):
        raise ConfigError("units", f"got {patterns!r}, must be a list of patterns")
    chosen = choose_units(model, patterns)
    for name, parameter in chosen.items():
        if parameter.dtype != torch.float32:
            problem = f"is {str(parameter.dtype).removeprefix('torch.')}, must be float32"
            remedy = "Keep weights in float32 and compute under autocast"
            raise UnitError(name, problem, remedy)
    return chosen


def own_config(
    optimizer: torch.optim.Optimizer,
    units: dict[str, nn.Parameter],
    uri: str,
    store: StoreConfig,
    capture: CaptureConfig,
    *,
    window: int,
) -> Config:
    """What ``run.yaml`` says: of optimizer and learning rate, what the first unit's group had."""
    if (k := capture.outliers.k) > (size := Layout.of(units).size):
        problem = f"got {k}, must be at most {size}, the number of captured parameters"
        raise ConfigError("outliers.k", problem)
    groups = group_of(optimizer, units)
    configs = [config_of(optimizer, group) for group in groups.values()]
    first = next(iter(groups.values()))
    rate = float(first.get("initial_lr", first["lr"]))
    training = TrainingConfig(epochs=1, batch=1, optimizer=configs[0], learning_rate=rate)
    return Config(
        run=RunConfig(uri=uri, loop="own"),
        corpus=CorpusConfig(window=window, validation_share=0.0),
        training=training,
        capture=capture,
        store=store,
    )


def own_description(config: Config, units: dict[str, nn.Parameter], layout: Layout) -> bytes:
    """The text of ``run.yaml``; raises ``ConfigError`` if it would be more than is ever read."""
    device = next(iter(units.values())).device
    described = describe_run(config, device, transposed=layout.transposed)
    if len(described) > MAX_BYTES:
        problem = f"match {len(units):,} parameters, more than run.yaml can name"
        raise ConfigError("units", problem, "Choose fewer")
    return described
