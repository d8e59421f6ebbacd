"""What records of a large model would take: arithmetic on stated assumptions, nothing measured.

Bytes follow from the shapes of a transformer alone; only the time of training needs a machine.
"""

from dataclasses import dataclass

from capture.errors import at_least


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What the estimate rests on, each with where it comes from."""

    width_per_layer: int = 128
    """GPT-3 has 96 layers of width 12,288; with 12 · layers · width² parameters this gives both."""
    vocabulary: int = 50_257
    """GPT-2's and GPT-3's."""
    batch_tokens: int = 3_200_000
    """A step of GPT-3 (Brown et al. 2020, table 2.1)."""
    segment_steps: int = 100
    """Between two checkpoints."""
    state_copies: int = 3
    """Numbers a checkpoint keeps for a parameter: itself and AdamW's two moments."""
    outliers_per_datum: int = 1000
    """capture.outliers.k."""
    outlier_bytes: float = 7.6
    """A row of a shard, as measured on the study's run."""
    factor_floats: int = 16
    """A token and layer, in widths: inputs and output gradients of the four linear layers."""
    packed: float = 0.69
    """What packing leaves of factors, as measured on the study's model."""
    tally_bytes: float = 1.2
    """One packed value of a tally, as measured on the study's run."""
    windows: int = 10
    """Of training, each with tallies of its own."""
    gpu_flops: float = 4e14
    """Floating-point operations a second that a GPU does in training: 40 % of 1e15."""


ASSUMPTIONS = Assumptions()


@dataclass(frozen=True)
class TrainingScale:
    """The training to estimate."""

    params: float
    tokens: float
    window: int
    gpus: int

    def __post_init__(self) -> None:
        at_least("--model-params", self.params, 1e6)
        at_least("--tokens", self.tokens, 1e6)
        at_least("--window", self.window, 1)
        at_least("--gpus", self.gpus, 1)

    @property
    def datums(self) -> float:
        return self.tokens / self.window


@dataclass(frozen=True)
class Estimate:
    """One kind of record of such a training."""

    kind: str
    num_bytes: float
    bytes_per_second: float
    """Each GPU's share of writing it while training runs."""


def training_seconds(scale: TrainingScale, given: Assumptions = ASSUMPTIONS) -> float:
    """6 operations a parameter and token (Kaplan et al. 2020, section 2.1)."""
    return 6 * scale.params * scale.tokens / (given.gpu_flops * scale.gpus)


def estimate_records(scale: TrainingScale, given: Assumptions = ASSUMPTIONS) -> list[Estimate]:
    """Each kind of record, the cheapest to the dearest as they are for large models."""
    layers = (scale.params / (12 * given.width_per_layer**2)) ** (1 / 3)
    width = given.width_per_layer * layers
    steps = scale.tokens / given.batch_tokens
    state = 4 * given.state_copies * scale.params
    neurons = layers * (width + 4 * width)
    sizes = {
        "outliers": scale.datums * given.outliers_per_datum * given.outlier_bytes,
        "tallies": 4 * given.vocabulary * neurons * given.tally_bytes * given.windows,
        "checkpoints": state * (1 + steps / given.segment_steps),
        "factors": scale.tokens * layers * given.factor_floats * width * 4 * given.packed,
        "dense": dense_bytes_of(scale),
    }
    seconds = training_seconds(scale, given) * scale.gpus
    return [Estimate(kind, size, size / seconds) for kind, size in sizes.items()]


def dense_bytes_of(scale: TrainingScale) -> float:
    """Every parameter's shift of every datum as float32: the study's own estimate."""
    return 4 * scale.params * scale.datums
