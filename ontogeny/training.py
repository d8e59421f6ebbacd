"""Make runs, replay them, and check them: the public functions that train.

Each takes what the command of the same name takes; ``ontogeny.record`` records a loop of your own.
"""

from collections.abc import Callable, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pandas as pd

from analysis.run import run as stored
from capture.config.reading import make_config, read_config
from capture.config.records import wanted_kinds
from capture.config.settings import Config, to_values
from capture.maintenance.selfcheck import self_check
from capture.maintenance.verify import verify as verify_run
from capture.replay.segments import read_replayable_run
from capture.store import Store
from cluster.local.processes import replay_segments
from ontogeny.answers import report_to
from ontogeny.run import Run, open_run

if TYPE_CHECKING:
    from cluster.terminal.progress import Report

Record = Literal["outliers", "tallies", "factors"]


def capture(
    config: str | Path | Config = "demo",
    *overrides: str,
    resume: bool = False,
    overwrite: bool = False,
    report: "Report | None" = None,
) -> Run:
    """Train a model, record what each datum does to each parameter, and open the run.

    Args:
        config: A bundled configuration (``"demo"``, ``"wikitext2"``, …), a YAML file, or a
            ``Config``.
        overrides: Settings as on the command line, such as ``"training.epochs=2"``.
        resume: Continue after the last committed segment. A finished run is left as it is.
        overwrite: Replace the run that is there.
        report: Called with every event of the training loop (progress, evaluations, delays).

    Returns:
        The finished run at ``config.run.uri``.

    Raises:
        CaptureError: A setting is wrong, a run is in the way, the store cannot be used, or the
            shifts of a step do not add up to the applied change (``AuditError``).

    Example:
        >>> run = ontogeny.capture("demo", *small, "run.uri=runs/example")
        >>> run.steps_done == run.num_steps
        True
    """
    from cluster.commands.capture import choose_runner

    if isinstance(config, Config):
        chosen = make_config(to_values(config), overrides)
    else:
        chosen = read_config(config, overrides)
    choose_runner(chosen)(
        chosen, report or (lambda event: None), resume=resume, overwrite=overwrite
    )
    return open_run(chosen.run.uri, chosen.store)


def replay(
    run: Run | str | PathLike[str],
    records: Sequence[Record] = ("outliers",),
    *,
    segments: Sequence[int] | None = None,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Run:
    """Add records to a run by taking its steps again from its checkpoints.

    On the same kind of machine the added files equal, byte for byte, those that the capture would
    have written.

    Args:
        run: A run, or the folder or prefix where it is.
        records: What to add: ``"outliers"``, ``"tallies"``, ``"factors"``.
        segments: Numbers of segments, from 0; all committed ones by default.
        workers: Processes of this machine that replay at the same time.
        progress: Called with the number of segments done and in all.

    Returns:
        The run, opened again, with the new records.

    Raises:
        CaptureError: The run has no checkpoints, a record is unknown, or a segment does not end
            where it ended when it was captured (``ReplayError``).

    Example:
        >>> bare = ["run.uri=runs/bare", "capture.record=checkpoints"]
        >>> run = ontogeny.replay(ontogeny.capture("demo", *small, *bare), ["outliers"])
        >>> len(run.shifts(steps=range(1))) > 0
        True
    """
    store = run.store if isinstance(run, stored.Run) else Store(fspath(run))
    kinds = wanted_kinds(list(records), "records")
    replayable = read_replayable_run(store, None)
    chosen = (
        range(len(open_run(store.uri, store.config).segments)) if segments is None else segments
    )
    told = report_to(progress)
    replay_segments(replayable, list(chosen), kinds, told, workers=workers)
    return open_run(store.uri, store.config)


def verify(run: Run | str | PathLike[str]) -> pd.DataFrame:
    """Check every file of a run against the checksum and row count in its marker.

    Args:
        run: A run, or the folder or prefix where it is.

    Returns:
        One row a file that is not as it should be: ``key``, ``state`` (``damaged``, ``missing``,
        or ``unlisted``: no marker names it) and ``detail``. Empty for a sound run.

    Raises:
        RunError: There is no run.

    Example:
        >>> ontogeny.verify("runs/demo").empty
        True
    """
    found = verify_run(run.store if isinstance(run, stored.Run) else Store(fspath(run)))
    rows = [(finding.key, finding.state, finding.detail) for finding in found]
    return pd.DataFrame(rows, columns=["key", "state", "detail"])


def selfcheck(config: str | Path | Config = "demo", *overrides: str) -> pd.DataFrame:
    """Compare captured gradients of your model and data with slower, independent computations.

    Takes a few steps of the configuration and compares each datum's gradient with a backward pass
    of that datum alone, with ``torch.func.vmap(grad)``, and the outliers with a dense ``topk``.

    Args:
        config: A bundled configuration, a YAML file, or a ``Config``.
        overrides: Settings as on the command line.

    Returns:
        One row a comparison: ``what``, ``found`` (largest relative difference; NaN where it could
        not be made), ``allowed``, ``holds``, ``detail``.

    Raises:
        CaptureError: What a capture of the configuration would raise.

    Example:
        >>> bool(ontogeny.selfcheck("demo", *small).holds.all())
        True
    """
    chosen = config if isinstance(config, Config) else read_config(config, overrides)
    checks = list(self_check(chosen))
    return pd.DataFrame(
        [(check.what, check.found, check.allowed, check.holds, check.detail) for check in checks],
        columns=["what", "found", "allowed", "holds", "detail"],
    )
