"""Estimate the records of a large model by arithmetic on stated assumptions. Nothing is measured.

Bytes follow from the shapes of a transformer. Only the training time depends on the machine.
"""

from dataclasses import dataclass

from capture.errors import ConfigError, at_least


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """The assumptions of the estimate, each with its source."""

    width_per_layer: int = 128
    """GPT-3: 96 layers of width 12,288. With 12 · layers · width² parameters, the number of
    parameters then gives layers and width."""
    vocabulary: int = 50_257
    """Vocabulary of GPT-2 and GPT-3."""
    batch_tokens: int = 3_200_000
    """Tokens per step of GPT-3 (Brown et al. 2020, table 2.1)."""
    segment_steps: int = 100
    """Steps between two checkpoints."""
    state_copies: int = 3
    """Numbers per parameter in a checkpoint: the parameter and AdamW's two moments."""
    gathered_copies: int = 4
    """Numbers per captured parameter that ``ontogeny.record`` puts together on each GPU under
    ``fully_shard``: those of a checkpoint, and the gradient."""
    outliers_per_datum: int = 1000
    """capture.outliers.k."""
    outlier_bytes: float = 7.6
    """Bytes per outlier, as measured on the study's run."""
    factor_floats: int = 16
    """Floats per token and layer, in units of the width: inputs and output gradients of the four
    linear layers."""
    packed: float = 0.69
    """Compressed size of factors relative to float32, as measured on the study's model."""
    tally_bytes: float = 1.2
    """One packed value of a tally, as measured on the study's run."""
    windows: int = 10
    """Number of training windows, each with its own tallies."""
    gpu_flops: float = 4e14
    """Floating-point operations per second of a GPU in training: 40 % of 1e15."""


ASSUMPTIONS = Assumptions()


@dataclass(frozen=True)
class TrainingScale:
    """Size of the training to estimate."""

    params: float
    tokens: float
    window: int
    gpus: int
    layers: int | None = None
    """None: from the number of parameters and ``Assumptions.width_per_layer``."""
    width: int | None = None
    """None exactly if ``layers`` is None."""

    def __post_init__(self) -> None:
        if (self.layers is None) != (self.width is None):
            raise ConfigError("ontogeny plan", "takes --layers and --width together")
        at_least("--layers", 1 if self.layers is None else self.layers, 1)
        at_least("--width", 1 if self.width is None else self.width, 1)
        at_least("--model-params", self.params, 1e6)
        at_least("--tokens", self.tokens, 1e6)
        at_least("--window", self.window, 1)
        at_least("--gpus", self.gpus, 1)

    def shape(self, given: Assumptions = ASSUMPTIONS) -> tuple[float, float]:
        """Return the number of layers and their width.

        params = 12 · layers · width² and width = width_per_layer · layers, solved for layers.
        """
        if self.layers is not None and self.width is not None:
            return self.layers, self.width
        layers = (self.params / (12 * given.width_per_layer**2)) ** (1 / 3)
        return layers, given.width_per_layer * layers

    @property
    def datums(self) -> float:
        """Number of windows of training text."""
        return self.tokens / self.window


@dataclass(frozen=True)
class Estimate:
    """The estimate of one kind of record."""

    kind: str
    num_bytes: float
    bytes_per_second: float
    """Bytes per second that each GPU writes while training runs."""


def training_seconds(scale: TrainingScale, given: Assumptions = ASSUMPTIONS) -> float:
    """Estimate with 6 operations per parameter and token (Kaplan et al. 2020, section 2.1)."""
    return 6 * scale.params * scale.tokens / (given.gpu_flops * scale.gpus)


def estimate_records(scale: TrainingScale, given: Assumptions = ASSUMPTIONS) -> list[Estimate]:
    """Estimate each kind of record, sorted by size as for large models."""
    layers, width = scale.shape(given)
    steps = scale.tokens / given.batch_tokens
    state = 4 * given.state_copies * scale.params
    # A layer has MLP inputs (its width) and hidden neurons (four times its width).
    neurons = layers * (width + 4 * width)
    sizes = {
        "outliers": scale.datums * given.outliers_per_datum * given.outlier_bytes,
        "tallies": 4 * given.vocabulary * neurons * given.tally_bytes * given.windows,
        "checkpoints": state * (1 + steps / given.segment_steps),
        "factors": scale.tokens * factor_bytes(scale, given) * given.packed,
        "dense": dense_bytes_of(scale),
    }
    seconds = training_seconds(scale, given) * scale.gpus
    return [Estimate(kind, size, size / seconds) for kind, size in sizes.items()]


def factor_bytes(scale: TrainingScale, given: Assumptions = ASSUMPTIONS) -> float:
    """Return the bytes of a token's factors in all layers, float32, as they are held in memory."""
    layers, width = scale.shape(given)
    return layers * given.factor_floats * width * 4


@dataclass(frozen=True)
class HeldBytes:
    """Bytes that recording adds to the memory of each GPU, if all parameters are captured."""

    gathered: float
    """Whole parameters, gradients and optimizer state, under ``fully_shard``."""
    factors: float
    """Factors of the GPU's own tokens in one step."""


def held_bytes(scale: TrainingScale, given: Assumptions = ASSUMPTIONS) -> HeldBytes:
    """Estimate what ``ontogeny.record`` holds on each GPU while the model trains."""
    own_tokens = given.batch_tokens / scale.gpus
    gathered = 4.0 * given.gathered_copies * scale.params
    return HeldBytes(gathered, own_tokens * factor_bytes(scale, given))


def dense_bytes_of(scale: TrainingScale) -> float:
    """Return the bytes of every shift of every datum as float32, as the study estimates it."""
    return 4 * scale.params * scale.datums
