"""Read a run: configuration, tables, weights, shifts, gradients and tallies.

``open_run`` returns a ``Run``. May import ``capture``, but modules load the training engine only
when a query needs a replayed step.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.run.run import Run, open_run

__all__ = ["Run", "open_run"]


def __getattr__(name: str) -> Any:
    """Import on first use: ``analysis.run.run`` needs torch, ``analysis.run.names`` does not."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from analysis.run import run

    return getattr(run, name)
