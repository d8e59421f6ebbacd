"""Training runs to predict: from the study's model to the GPT-3 that the study estimated."""

import math
from dataclasses import dataclass

FLOAT_BYTES = 4.0


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Sizes of a training run and of its record."""

    name: str
    parameters: int
    captured: int
    """Number of parameters whose shifts are recorded."""
    token_floats: int
    """Numbers in a token's factors: inputs and outputs of the captured weights, summed."""
    neurons: int
    """Number of neurons with tallies."""
    vocabulary: int
    window: int
    datums: int
    """Datums times epochs."""
    batch: int
    outliers: int = 1000
    """Recorded rows per datum."""
    segment_steps: int = 100
    tally_windows: int = 5
    moments: int = 0
    """Number of optimizer tensors in a checkpoint, each as large as the weights."""

    @property
    def steps(self) -> int:
        return math.ceil(self.datums / self.batch)

    @property
    def segments(self) -> int:
        return math.ceil(self.steps / self.segment_steps)

    @property
    def checkpoint_bytes(self) -> float:
        return FLOAT_BYTES * self.parameters * (1.0 + self.moments)

    @property
    def datum_flops(self) -> float:
        """Floating-point operations of forward and backward: 6 per parameter and token."""
        return 6.0 * self.parameters * self.window


def transformer(
    name: str, *, layers: int, width: int, hidden: int, vocabulary: int, tokens: float, window: int,
    batch: int, segment_steps: int = 100, moments: int = 0,
) -> Workload:  # fmt: skip
    """Return the run of a transformer of this shape whose body is captured.

    ``tokens`` is the number of training tokens, epochs included.
    """
    weights = 4 * width * width + 2 * width * hidden
    biases_and_norms = 9 * width + hidden
    captured = layers * (weights + biases_and_norms)
    return Workload(
        name=name,
        parameters=captured + 2 * vocabulary * width + vocabulary,
        captured=captured,
        token_floats=layers * (4 * width + 2 * width + 2 * (width + hidden)),
        neurons=layers * (width + hidden),
        vocabulary=vocabulary,
        window=window,
        datums=math.ceil(tokens / window),
        batch=batch,
        segment_steps=segment_steps,
        moments=moments,
    )


STUDY = transformer(
    "the study", layers=3, width=200, hidden=200, vocabulary=28_782,
    tokens=5 * 58_560 * 35, window=35, batch=20,
)  # fmt: skip
SMALL = transformer(
    "124 million", layers=12, width=768, hidden=3072, vocabulary=50_257,
    tokens=10e9, window=1024, batch=512, moments=2,
)  # fmt: skip
SEVEN = transformer(
    "7 billion", layers=32, width=4096, hidden=16_384, vocabulary=32_000,
    tokens=1e12, window=2048, batch=2048, moments=2,
)  # fmt: skip
GPT3 = transformer(
    "GPT-3", layers=96, width=12_288, hidden=49_152, vocabulary=50_257,
    tokens=700e9, window=1000, batch=3200, moments=2,
)  # fmt: skip
"""The study's estimate: 175 billion parameters, 700 billion tokens, windows of 1,000."""
