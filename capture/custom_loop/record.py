"""Record a training loop that you wrote yourself.

While the ``with`` block of ``record`` is active,

- a tape watches how forward passes use the captured parameters (``capture.custom_loop.loop_tape``),
- hooks of the optimizer mark where a step begins and ends (``capture.custom_loop.recording``),
- each update is split into per-datum shifts and carry (``capture.custom_loop.update``), audited
  against the change of the weights (``capture.custom_loop.step_inputs``, ``steps``), and stored.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import get_args

import pyarrow as pa
import torch
from torch import nn

from capture.config.records import FactorConfig
from capture.config.settings import CaptureConfig, Config, RunConfig
from capture.corpus.datums import CorpusConfig
from capture.custom_loop.datums import DatumDescriptions, datum_tables, tokens_per_datum
from capture.custom_loop.optimizer_settings import (
    initial_learning_rate,
    optimizer_config,
    require_rule,
    settings_of_groups,
)
from capture.custom_loop.ranks.beginning import BEGIN, begin_run, steps_before
from capture.custom_loop.ranks.checkpoints import LoopCheckpoints
from capture.custom_loop.ranks.loop_state import state_of
from capture.custom_loop.ranks.recorded_loop import RecordedLoop
from capture.custom_loop.ranks.same_batches import SameBatches
from capture.custom_loop.ranks.wrappers import data_parallel, ranks_of
from capture.custom_loop.recording import Recording
from capture.custom_loop.units import (
    custom_loop_units,
    naming_share,
    plain_model,
    plain_optimizer,
    without_compilation,
)
from capture.custom_loop.update import groups_of_units
from capture.device import packing_threads
from capture.errors import ConfigError
from capture.format.chain import read_segments, require_start
from capture.format.run_yaml import MAX_BYTES, describe_run
from capture.gradients.layout import Layout
from capture.gradients.vmap_fallback import Fallback
from capture.models.huggingface import stored_transposed
from capture.optim.config import TrainingConfig
from capture.shifts.outliers import OutlierConfig
from capture.shifts.tallies import TallyConfig
from capture.store import DEFAULT, Store
from capture.store.config import StoreConfig
from capture.training.recorder import Recorder


@contextmanager
def record(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    run: str,
    units: Sequence[str] | None = None,
    datums: DatumDescriptions = None,
    vocabulary: Sequence[str] | None = None,
    outliers: OutlierConfig | None = None,
    factors: FactorConfig | None = None,
    segment_steps: int = 100,
    audit_tolerance: float = 1e-5,
    store: StoreConfig = DEFAULT,
    resume: bool = False,
    overwrite: bool = False,
    fallback: Fallback = "none",
) -> Iterator[Recording]:
    """Record what every datum does to the parameters of ``model`` in each step of ``optimizer``.

    A context manager around your training loop. Recording leaves training bit-identical. In every
    step, the recorded shifts and the carry (momentum, weight decay) are compared with the change of
    the weights; training stops if they differ.

    Your loop has to

    - call ``recorder.datums(ids)`` before each forward pass (not needed if the datums of the run
      are numbered in the order in which they arrive),
    - call ``model`` with the batch as first axis of its inputs, and ``backward`` on a scalar,
    - change gradients between ``backward`` and ``step`` only by one common factor (clipping of
      the total norm, ``GradScaler``),
    - call ``optimizer.step()`` once for each update and clear gradients by ``zero_grad``. Several
      backward passes before one ``step`` are micro-batches.

    Args:
        model: any module with float32 parameters; autocast may compute in bfloat16. A compiled
            model runs uncompiled while it is recorded, and its parameters have their own names. In
            a ``DistributedDataParallel`` over several processes, or under ``fully_shard``, all of
            them call ``record`` alike, each with its own datums, and make one record.
        optimizer: one of ``torch.optim`` other than ``LBFGS``, ``Rprop`` and ``SparseAdam``,
            transformers' ``Adafactor``, or one of yours that has ``preconditioner`` and ``carry``
            (``UnitUpdate``); with any parameter groups, also in a wrapper that keeps it as
            ``optimizer`` (accelerate, Lightning).
        run: where the run is stored: a folder, ``file:///…``, ``memory://…`` or
            ``s3://bucket/prefix``.
        units: glob patterns over parameter names; the parameters that match any are captured,
            except those that match a pattern beginning with ``!``. Default: all parameters that
            the optimizer trains.
        datums: the training data: integer tokens ``[N, T + 1]`` (T inputs, each followed by its
            target), N lists of tokens of any length (padded at their end by your loop), N names, or
            their number N. None: datums are numbered in the order in which they arrive, and tokens
            cannot be attributed.
        vocabulary: text of each token, if ``datums`` are tokens; by default its number.
        outliers: how many of the largest shifts are stored. Default: the 1000 largest of each
            datum in each step, or all if the captured parameters are fewer. None are stored with
            ``OutlierConfig(enabled=False)``.
        factors: whether the factors of all per-sample gradients are stored. Default: no. They are
            with ``FactorConfig(enabled=True)``.
        segment_steps: steps per segment. A segment is committed as a whole, with a checkpoint.
        audit_tolerance: largest unexplained difference between shifts and change of the weights,
            relative to the norm of the change.
        store: settings for retries, timeouts and pending bytes.
        resume: continue an existing run after its last committed step: see ``Recording.restore``.
        overwrite: replace an existing run.
        fallback: ``"vmap"`` splits every parameter without factors, by running the innermost module
            again for each datum whose inputs and outputs have the batch as first axis: at worst the
            whole model. ``"none"`` does so only for a module's own parameters (LSTM, experts).

    Yields:
        Recording: takes datums, epochs and evaluations from your loop. When the block ends, the
        steps of the open segment are committed as a shorter segment; after an error they are
        dropped.

    Raises:
        RunError: if the run exists and neither ``resume`` nor ``overwrite`` is set, if it has
            another configuration, or if another process records it.
        ConfigError: for an unsupported optimizer, units that it does not train, invalid datums, or
            ``outliers`` or ``factors`` that are no such configuration, or another ``fallback``.
        UnitError: for a parameter whose gradient cannot be split by datum.
        AuditError: if the shifts of a step do not add up to the change of the weights.
        StoreError: if the store refuses a file, or stays away longer than its patience.

    Example:
        >>> import ontogeny, torch
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with ontogeny.record(model, optimizer, run="runs/mine", datums=8) as recorder:
        ...     recorder.datums(range(8))
        ...     model(torch.randn(8, 4)).square().mean().backward()
        ...     optimizer.step()
        >>> len(ontogeny.open_run("runs/mine").shifts(unit="weight"))  # 8 datums, 4 weights
        32
    """
    with naming_share(plain_model(model)), ExitStack() as stack:
        ranks = stack.enter_context(ranks_of(model, store.patience_seconds))
        wrapper = data_parallel(model) if ranks.size > 1 else None
        given, model, optimizer = model, plain_model(model), plain_optimizer(optimizer)

        def prepare() -> Prepared:
            require_configs(outliers, factors, fallback)
            chosen = custom_loop_units(model, optimizer, units)
            require_rule(model, optimizer)
            tables = datum_tables(datums, vocabulary)
            capture = CaptureConfig(
                units=list(chosen),
                outliers=outliers or OutlierConfig(k=min(1000, Layout.of(chosen).size)),
                factors=factors or FactorConfig(),
                segment_steps=segment_steps,
                audit_tolerance=audit_tolerance,
                tally=TallyConfig(enabled=False),
                fallback=fallback,
            )
            window = tokens_per_datum(tables) or 1
            config = custom_loop_config(optimizer, chosen, run, store, capture, window=window)
            layout = Layout.of(chosen, stored_transposed(model))
            description = custom_loop_description(config, chosen, layout, optimizer)
            return Prepared(chosen, tables, config, layout, description)

        own = ranks.attempt(prepare)
        ranks.agree(BEGIN)
        assert own is not None
        target = Store(run, store)
        state = state_of(model, optimizer, own.units, ranks)
        weights = state.weights(ranks.rank)
        may_commit = begin_run(
            stack,
            ranks,
            target,
            own.config,
            own.description,
            weights,
            own.tables,
            resume=resume,
            overwrite=overwrite,
        )
        done = read_segments(target)
        recorder = stack.enter_context(
            Recorder(
                target,
                own.layout,
                done,
                group=ranks.group,
                packing_threads=packing_threads(next(iter(own.units.values())).device),
                segment_steps=own.config.capture.segment_steps,
                may_commit=may_commit,
            )
        )
        last = done[-1] if done else require_start(target)
        settings = own.config.training.optimizer
        checkpoints = LoopCheckpoints(target, state, settings, last)
        batches = SameBatches(steps_before(target, [*done[:1], *done[-1:]]), ranks.size)
        loop = RecordedLoop(ranks, checkpoints, wrapper, batches)
        stack.enter_context(without_compilation(given))
        with Recording(
            recorder, own.config, model, optimizer, own.units, own.tables, loop
        ) as recording:
            yield recording


def require_configs(outliers: object, factors: object, fallback: object) -> None:
    """Raise ``ConfigError`` unless each is None or the configuration of its kind of record."""
    if fallback not in get_args(Fallback):
        raise ConfigError("fallback", f"got {fallback!r:.80}, must be one of none, vmap")
    if not isinstance(outliers, OutlierConfig | None):
        remedy = "Pass outliers=ontogeny.OutlierConfig(k=1000)"
        raise ConfigError("outliers", f"got {outliers!r:.80}, must be an OutlierConfig", remedy)
    if not isinstance(factors, FactorConfig | None):
        remedy = "Pass factors=ontogeny.FactorConfig(enabled=True)"
        raise ConfigError("factors", f"got {factors!r:.80}, must be a FactorConfig", remedy)


@dataclass(frozen=True)
class Prepared:
    """What is known of a run before it begins."""

    units: dict[str, nn.Parameter]
    tables: dict[str, pa.Table]
    config: Config
    layout: Layout
    description: bytes
    """Text of ``run.yaml``."""


def custom_loop_config(
    optimizer: torch.optim.Optimizer,
    units: dict[str, nn.Parameter],
    uri: str,
    store: StoreConfig,
    capture: CaptureConfig,
    *,
    window: int,
) -> Config:
    """Return the configuration to store in ``run.yaml``.

    Optimizer and learning rate are those of the first unit's parameter group at the start.
    """
    capture.outliers.require_available(Layout.of(units).sizes, "outliers.k")
    groups = groups_of_units(optimizer, units)
    configs = [optimizer_config(optimizer, group) for group in groups.values()]
    first = next(iter(groups.values()))
    rate = initial_learning_rate(first)
    training = TrainingConfig(epochs=1, batch=1, optimizer=configs[0], learning_rate=rate)
    return Config(
        run=RunConfig(uri=uri, loop="own"),
        corpus=CorpusConfig(window=window, validation_share=0.0),
        training=training,
        capture=capture,
        store=store,
    )


def custom_loop_description(
    config: Config,
    units: dict[str, nn.Parameter],
    layout: Layout,
    optimizer: torch.optim.Optimizer,
) -> bytes:
    """Return the text of ``run.yaml``; raises ``ConfigError`` if readers would refuse its size."""
    device = next(iter(units.values())).device
    groups = settings_of_groups(optimizer, units)
    description = describe_run(config, device, transposed=layout.transposed, groups=groups)
    if len(description) > MAX_BYTES:
        problem = f"match {len(units):,} parameters, more than run.yaml can name"
        raise ConfigError("units", problem, "Choose fewer")
    return description
