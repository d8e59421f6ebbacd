"""Which text or task to train on, and how it is cut into datums."""

from dataclasses import dataclass, field
from typing import Literal

from capture.corpus.planting import FlipConfig, PlantConfig, ScrambleConfig
from capture.corpus.tasks import images, modular_addition
from capture.corpus.tasks.images import ImagesConfig
from capture.corpus.tasks.maze import MazeConfig
from capture.corpus.tasks.modular_addition import ModularConfig
from capture.corpus.tasks.repeated import RepeatedConfig
from capture.errors import ConfigError, at_least

WORDS = "words"
Kind = Literal[
    "python-reference",
    "wikitext2",
    "text",
    "modular-addition",
    "digits",
    "mnist",
    "repeated",
    "maze",
]
TASKS = ("modular-addition", "digits", "mnist", "repeated", "maze")
"""Kinds of corpus that are no text."""
GROUPS = {
    "modular": (("modular-addition",), ModularConfig()),
    "images": (("digits", "mnist"), ImagesConfig()),
    "repeated": (("repeated",), RepeatedConfig()),
    "maze": (("maze",), MazeConfig()),
    "flip": (("digits", "mnist", "modular-addition"), FlipConfig()),
}
"""Group of settings → the kinds of corpus that have them, and their defaults."""


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Which text to train on, and how it is cut into datums."""

    kind: Kind = "python-reference"
    """The language reference that comes with Python, WikiText-2, any UTF-8 text, or a task:
    modular-addition, digits, mnist, repeated (sequences) or maze."""
    path: str | None = None
    """wikitext2: a folder with its files, or null to download them. text: a file, or a folder of
    .txt files; the same for repeated, if it has a text_share. mnist: a folder with its idx
    files."""
    tokenizer: str = WORDS
    """words, as in the study; or a Hugging Face tokenizer, by folder or by id on the hub."""
    window: int = 35
    """Tokens per datum."""
    validation_share: float = 0.03
    """Share of the windows held out for validation, spread evenly over the text. Not used for
    wikitext2, which has its own splits."""
    test_share: float = 0.0
    """Share of the windows held out for testing, chosen in the same way."""
    plant: PlantConfig = field(default_factory=PlantConfig)
    scramble: ScrambleConfig = field(default_factory=ScrambleConfig)
    flip: FlipConfig = field(default_factory=FlipConfig)
    modular: ModularConfig = field(default_factory=ModularConfig)
    images: ImagesConfig = field(default_factory=ImagesConfig)
    repeated: RepeatedConfig = field(default_factory=RepeatedConfig)
    maze: MazeConfig = field(default_factory=MazeConfig)

    def __post_init__(self) -> None:
        if self.kind in ("text", "mnist") and self.path is None:
            problem = f"got null, must name a file or folder when corpus.kind is {self.kind}"
            raise ConfigError("corpus.path", problem)
        mixed = self.kind == "repeated" and self.repeated.text_share > 0
        if self.kind not in ("text", "wikitext2", "mnist") and self.path is not None and not mixed:
            problem = f"got {self.path!r}, must be null when corpus.kind is {self.kind}"
            remedy = "Set corpus.kind to text or wikitext2"
            if self.kind == "repeated":
                remedy = "Set corpus.repeated.text_share to mix the text in"
            raise ConfigError("corpus.path", problem, remedy)
        if self.kind in TASKS:
            self.require_task()
        for name, (kinds, plain) in GROUPS.items():
            if self.kind not in kinds and getattr(self, name) != plain:
                problem = f"is set, but corpus.kind is {self.kind}"
                remedy = f"Set corpus.kind={kinds[0]}, or leave it out"
                raise ConfigError(f"corpus.{name}", problem, remedy)
        at_least("corpus.window", self.window, 1)
        for name in ("validation_share", "test_share"):
            if not 0 <= (found := getattr(self, name)) < 1:
                raise ConfigError(f"corpus.{name}", f"got {found}, must be at least 0 and below 1")
        if (together := self.validation_share + self.test_share) >= 1:
            problem = f"got {together} together with corpus.validation_share, must stay below 1"
            raise ConfigError("corpus.test_share", problem)
        if self.plant.share + self.scramble.share > 1:
            problem = f"got {self.scramble.share} together with corpus.plant.share, at most 1"
            raise ConfigError("corpus.scramble.share", problem)

    def require_task(self) -> None:
        """Raise ``ConfigError`` for settings that the task cannot have."""
        wanted = {
            "modular-addition": modular_addition.WINDOW,
            "digits": images.DIGITS_SIDE**2,
            "mnist": images.MNIST_SIDE**2,
            "maze": self.maze.size**2 + self.maze.moves,
        }.get(self.kind, self.window)
        if self.window != wanted:
            problem = f"got {self.window}, must be {wanted}, the tokens of a datum of {self.kind}"
            raise ConfigError("corpus.window", problem)
        if self.kind == "repeated":
            self.repeated.require_repetition(self.window)
        for name, plain in (("tokenizer", WORDS), ("plant", PlantConfig()), ("scramble", None)):
            found = getattr(self, name)
            if found != (ScrambleConfig() if plain is None else plain):
                problem = f"is set, but corpus.kind is {self.kind}, which is no text"
                raise ConfigError(f"corpus.{name}", problem, "Leave it out")

    @property
    def scored(self) -> int | None:
        """Number of positions at the end of the window at which the loss counts; None: all."""
        known = {"modular-addition": 1, "digits": 1, "mnist": 1, "maze": self.maze.moves}
        return known.get(self.kind)

    @property
    def picture(self) -> tuple[int, int] | None:
        """Rows and columns of the picture that a datum's first tokens are; None if they are no
        picture."""
        sides = {"digits": images.DIGITS_SIDE, "mnist": images.MNIST_SIDE, "maze": self.maze.size}
        side = sides.get(self.kind)
        return None if side is None else (side, side)

    @property
    def phases(self) -> tuple[int, ...]:
        """Ids of training datums at which a new phase of an epoch begins."""
        return (self.maze.corner,) if self.kind == "maze" else ()
