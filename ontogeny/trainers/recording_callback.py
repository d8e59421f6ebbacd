"""Base class of the callbacks of all trainers: their arguments, and ``close``."""

from collections.abc import Sequence

from capture.config.records import FactorConfig
from capture.custom_loop.datums import DatumDescriptions
from capture.custom_loop.record import require_configs
from capture.gradients.vmap_fallback import Fallback
from capture.shifts.outliers import OutlierConfig
from capture.store import DEFAULT, Store
from capture.store.config import StoreConfig
from ontogeny.trainers.base_class import JoinsOnCreation
from ontogeny.trainers.trained_run import TrainedRun


class RecordingCallback(JoinsOnCreation):
    """A callback that records the training of one trainer; its children handle the events."""

    def __init__(
        self,
        run: str,
        *,
        units: Sequence[str] | None = None,
        datums: DatumDescriptions = None,
        vocabulary: Sequence[str] | None = None,
        outliers: OutlierConfig | None = None,
        factors: FactorConfig | None = None,
        segment_steps: int = 100,
        audit_tolerance: float = 1e-5,
        store: StoreConfig = DEFAULT,
        overwrite: bool = False,
        fallback: Fallback = "none",
    ) -> None:
        """The arguments are those of ``ontogeny.record``.

        Args:
            run: where the run is stored: a folder, ``file:///…``, ``memory://…`` or
                ``s3://bucket/prefix``.
            units: glob patterns over parameter names; patterns that begin with ``!`` leave
                parameters out. Default: all parameters that are trained.
            datums: one for each row of the dataset, in its order. Default: the column
                ``input_ids``, if the dataset has it, or else the number of rows.
            vocabulary: text of each token, if datums are tokens. Default: the tokenizer's, if the
                trainer has one.
            outliers: how many of the largest shifts are stored.
            factors: whether the factors of all per-sample gradients are stored. Default: no. They
                are with ``FactorConfig(enabled=True)``.
            segment_steps: steps per segment, at most.
            audit_tolerance: largest unexplained difference between shifts and change of the
                weights.
            store: settings for retries, timeouts and pending bytes.
            overwrite: replace a run that exists, unless training continues from a checkpoint.
            fallback: "vmap" runs modules again for each datum whose parameters have no factors.

        Raises:
            ConfigError: the trainer's library is not installed, or ``outliers``, ``factors`` or
                ``fallback`` are none. Training raises what ``ontogeny.record`` raises, for example
                for a loss in which datums interact.
        """
        require_configs(outliers, factors, fallback)
        settings = {"units": units, "outliers": outliers, "factors": factors}
        settings |= {"segment_steps": segment_steps, "audit_tolerance": audit_tolerance}
        settings |= {"fallback": fallback}
        target = Store(run, store)
        self._run = TrainedRun(target, datums, vocabulary, settings, overwrite=overwrite)

    def close(self) -> None:
        """End a recording that an error in training left open, and drop its open segment.

        Errors that the recording itself raises have ended it already.
        """
        self._run.drop()
